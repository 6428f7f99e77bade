//! What a session asks its client beside the work: whether a path may be read. Each question waits
//! for its answer for as long as somebody holds it, and there are only so many.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

use crate::{
    ids::{OperatorName, RemotePath},
    limits,
    wire::session::Explained,
};

/// What is asked.
#[derive(Debug, PartialEq, Eq)]
pub struct Asked {
    pub path: RemotePath,
    /// Who asks, if that is known.
    pub operator: Option<OperatorName>,
}

/// Those of one session.
#[derive(Debug, Default)]
pub struct Questions(Mutex<Open>);

#[derive(Debug, Default)]
struct Open {
    last: u64,
    /// Yet to be sent.
    unsent: VecDeque<(u64, Asked)>,
    waiting: HashMap<u64, oneshot::Sender<Explained>>,
}

/// A question that was asked; dropped, nobody waits for the answer.
#[derive(Debug)]
pub struct Question {
    number: u64,
    answer: oneshot::Receiver<Explained>,
    of: Arc<Questions>,
}

impl Questions {
    /// Asks; `None` if as many questions are open as may.
    pub fn ask(self: &Arc<Self>, asked: Asked) -> Option<Question> {
        let mut open = self.lock();
        if open.waiting.len() >= limits::QUESTIONS_MAX {
            return None;
        }
        open.last += 1;
        let number = open.last;
        let (answerer, answer) = oneshot::channel();
        open.waiting.insert(number, answerer);
        open.unsent.push_back((number, asked));
        Some(Question { number, answer, of: Arc::clone(self) })
    }

    /// Returns the next one to be sent.
    pub fn next(&self) -> Option<(u64, Asked)> {
        self.lock().unsent.pop_front()
    }

    /// Takes an answer; one that nobody waits for is dropped.
    pub fn answer(&self, number: u64, explained: Explained) {
        if let Some(answerer) = self.lock().waiting.remove(&number) {
            // Whoever asked may just have left.
            drop(answerer.send(explained));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        // Nothing in it is ever half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Question {
    /// Waits for the answer. Never ends if the session ends first.
    pub async fn answered(&mut self) -> Explained {
        match (&mut self.answer).await {
            Ok(explained) => explained,
            Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        let mut open = self.of.lock();
        open.waiting.remove(&self.number);
        open.unsent.retain(|(number, _)| *number != self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::session::PathVerdict;

    fn asked() -> Asked {
        Asked { path: "/a".parse().expect("a path"), operator: None }
    }

    fn denied() -> Explained {
        Explained { verdict: PathVerdict::Denied, rule: String::new(), detail: String::new() }
    }

    #[tokio::test]
    async fn each_gets_its_own_answer_and_only_so_many_are_open() {
        let questions = Arc::new(Questions::default());
        let mut open: Vec<_> =
            (0..limits::QUESTIONS_MAX).map(|_| questions.ask(asked()).expect("room")).collect();
        assert!(questions.ask(asked()).is_none());

        let numbers: Vec<_> = std::iter::from_fn(|| questions.next()).map(|(n, _)| n).collect();
        let rule = |number: u64| Explained { rule: number.to_string(), ..denied() };
        for number in &numbers {
            questions.answer(*number, rule(*number));
            questions.answer(*number, denied());
        }

        for (question, number) in open.iter_mut().zip(numbers) {
            assert_eq!(question.answered().await, rule(number));
        }
        assert!(questions.ask(asked()).is_some());
    }

    #[test]
    fn one_that_nobody_waits_for_is_neither_sent_nor_kept() {
        let questions = Arc::new(Questions::default());
        for _ in 0..2 * limits::QUESTIONS_MAX {
            drop(questions.ask(asked()).expect("room"));
        }
        assert_eq!(questions.next(), None);
        questions.answer(1, denied());
    }
}
