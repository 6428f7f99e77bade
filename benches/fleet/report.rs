//! What was measured: a table for people, JSON for programs, and whether the goals were met.

use std::{
    fs,
    io::{self, Write as _},
    path::Path,
    time::{Duration, SystemTime},
};

use serde_json::json;

/// Where a figure should be.
#[derive(Debug, Clone, Copy)]
pub enum Goal {
    AtMost(f64),
    AtLeast(f64),
}

struct Figure {
    name: &'static str,
    value: f64,
    unit: &'static str,
    goal: Option<Goal>,
}

impl Figure {
    fn is_good(&self) -> bool {
        match self.goal {
            Some(Goal::AtMost(most)) => self.value <= most,
            Some(Goal::AtLeast(least)) => self.value >= least,
            None => true,
        }
    }

    fn verdict(&self) -> String {
        let word = if self.is_good() { "ok" } else { "MISSED" };
        match self.goal {
            Some(Goal::AtMost(most)) => format!("{word} (at most {most} {})", self.unit),
            Some(Goal::AtLeast(least)) => format!("{word} (at least {least})"),
            None => String::new(),
        }
    }
}

/// The figures of one run.
pub struct Report {
    clients: usize,
    window: Duration,
    down: Duration,
    figures: Vec<Figure>,
}

impl Report {
    pub fn new(clients: usize, window: Duration, down: Duration) -> Self {
        Self { clients, window, down, figures: Vec::new() }
    }

    /// Adds a figure, and shows it at once: a run takes minutes.
    pub fn tell(&mut self, name: &'static str, value: f64, unit: &'static str, goal: Option<Goal>) {
        say(&format!("{name}: {value:.1} {unit}"));
        self.figures.push(Figure { name, value, unit, goal });
    }

    pub fn is_good(&self) -> bool {
        self.figures.iter().all(Figure::is_good)
    }

    /// Writes the table to standard output.
    pub fn show(&self) -> io::Result<()> {
        let mut out = io::stdout().lock();
        let (window, down) = (self.window.as_secs(), self.down.as_secs());
        writeln!(
            out,
            "\n{} idle clients on one server; CPU over {window} s; {down} s down after kill -9\n",
            self.clients
        )?;
        for figure in &self.figures {
            let Figure { name, value, unit, .. } = figure;
            let verdict = figure.verdict();
            writeln!(out, "{}", format!("{name:<36} {value:>9.1} {unit:<4} {verdict}").trim_end())?;
        }
        Ok(())
    }

    /// Writes the figures to `target/bench` of the package.
    pub fn write(&self, package: &Path) -> anyhow::Result<()> {
        let figures: Vec<_> = self
            .figures
            .iter()
            .map(|figure| {
                let goal = match figure.goal {
                    Some(Goal::AtMost(most)) => json!({ "at_most": most }),
                    Some(Goal::AtLeast(least)) => json!({ "at_least": least }),
                    None => json!(null),
                };
                json!({
                    "name": figure.name, "value": figure.value, "unit": figure.unit,
                    "goal": goal, "met": figure.goal.map(|_| figure.is_good()),
                })
            })
            .collect();
        let run = json!({
            "clients": self.clients,
            "window_s": self.window.as_secs(),
            "down_s": self.down.as_secs(),
            "figures": figures,
        });
        let dir = package.join("target/bench");
        fs::create_dir_all(&dir)?;
        let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
        let path = dir.join(format!("fleet-{at}.json"));
        fs::write(&path, serde_json::to_string_pretty(&run)?)?;
        say(&format!("written: {}", path.display()));
        Ok(())
    }
}

/// Says how it goes, on standard error.
pub fn say(text: &str) {
    // Without a reader there is nobody to tell.
    drop(writeln!(io::stderr(), "fleet: {text}"));
}
