//! How the person, or the program, who waits is told what happens meanwhile: a bar on a terminal,
//! plain lines off one, or JSON events.

use std::time::{Duration, SystemTime};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::Instant;

use super::{
    Context,
    error::Error,
    output::{Form, Output, clean},
    view::EventView,
    words,
};
use crate::wire::proto::{State, Transfer};

const SPINNER: &str = "{spinner} {wide_msg}";
const BAR: &str = "[{bar:24}] {wide_msg}";
/// The spinner turns this often.
const TICK: Duration = Duration::from_millis(200);

/// Tells of one transfer.
pub(super) struct Reporter<'a> {
    output: &'a Output,
    form: Shown,
    every: Duration,
    /// The last line, and when it was printed.
    last: Option<(String, Instant)>,
    was_moving: bool,
}

enum Shown {
    Bar(ProgressBar),
    Lines,
    Events,
}

impl<'a> Reporter<'a> {
    pub(super) fn new(context: &'a Context) -> Self {
        let output = &context.output;
        let form = match output.form {
            Form::Json => Shown::Events,
            Form::Text if output.terminal => {
                let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
                bar.set_style(style(SPINNER));
                bar.enable_steady_tick(TICK);
                Shown::Bar(bar)
            }
            Form::Text => Shown::Lines,
        };
        let every = context.timing.progress_every;
        Self { output, form, every, last: None, was_moving: false }
    }

    /// Tells how the transfer stands.
    pub(super) async fn seen(
        &mut self,
        event: &'static str,
        transfer: &Transfer,
        last_seen: Option<SystemTime>,
    ) -> Result<(), Error> {
        let is_moving = transfer.state() == State::Receiving;
        match &self.form {
            Shown::Events => {
                self.last = None;
                return self.output.json(&EventView::new(event, transfer)).await;
            }
            Shown::Bar(bar) => {
                let size = transfer.size.filter(|_| is_moving);
                draw(bar, transfer.bytes_done, size, &words::standing(transfer, last_seen));
            }
            Shown::Lines => {
                let line = words::standing(transfer, last_seen);
                self.tell(line, is_moving).await;
            }
        }
        self.was_moving = is_moving;
        Ok(())
    }

    /// Tells how far the copy to this machine is.
    pub(super) async fn copied(&mut self, done: u64, size: u64, rate: u64) {
        let copy = Transfer { bytes_done: done, size: Some(size), rate, ..Default::default() };
        let text = format!("copying: {}", words::progress(&copy));
        match &self.form {
            Shown::Events => self.last = None,
            Shown::Bar(bar) => draw(bar, done, Some(size), &text),
            // The end is told, however soon it comes after the line before.
            Shown::Lines => self.tell(text, done < size).await,
        }
        self.was_moving = true;
    }

    /// Tells that the server is away; again and again the same is told once.
    pub(super) async fn lost(&mut self, why: &str) {
        let text = format!("{why}; trying again");
        match &self.form {
            Shown::Bar(bar) => bar.set_message(clean(&text)),
            Shown::Lines | Shown::Events => self.tell(text, false).await,
        }
        self.was_moving = false;
    }

    /// Makes room for what is printed next.
    pub(super) fn clear(&self) {
        if let Shown::Bar(bar) = &self.form {
            bar.finish_and_clear();
        }
    }

    /// Prints a line if it says something new. Progress after progress is told only now and then.
    async fn tell(&mut self, line: String, is_moving: bool) {
        let now = Instant::now();
        if let Some((last, at)) = &self.last {
            let is_soon = now.duration_since(*at) < self.every;
            if *last == line || (is_moving && self.was_moving && is_soon) {
                return;
            }
        }
        self.output.note(&line).await;
        self.last = Some((line, now));
    }
}

impl Drop for Reporter<'_> {
    fn drop(&mut self) {
        self.clear();
    }
}

fn draw(bar: &ProgressBar, done: u64, size: Option<u64>, text: &str) {
    match size {
        Some(size) if bar.length() != Some(size) => {
            bar.set_length(size);
            bar.set_style(style(BAR));
        }
        None if bar.length().is_some() => {
            bar.unset_length();
            bar.set_style(style(SPINNER));
        }
        _ => {}
    }
    bar.set_position(done);
    bar.set_message(clean(text));
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .expect("our templates are well-formed")
        .progress_chars("=> ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_shows_what_is_known() {
        let bar = ProgressBar::hidden();
        draw(&bar, 0, None, "waiting\u{1b}[2J");
        assert_eq!((bar.length(), bar.message().as_str()), (None, "waiting\\u{1b}[2J"));
        draw(&bar, 5, Some(10), "moving");
        assert_eq!((bar.length(), bar.position()), (Some(10), 5));
        draw(&bar, 5, None, "waiting again");
        assert_eq!(bar.length(), None);
    }
}
