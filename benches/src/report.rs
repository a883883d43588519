//! What was found out, as a table for people and as JSON for programs.

use std::{fs, path::Path};

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::{machine::Machine, statistics::Samples};

/// In what a figure is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    Milliseconds,
    Nanoseconds,
    Microseconds,
    /// How often something happened.
    Times,
    Mebibytes,
    /// One quantity divided by another.
    Ratio,
}

impl Unit {
    fn suffix(self) -> &'static str {
        match self {
            Self::Milliseconds => "ms",
            Self::Nanoseconds => "ns",
            Self::Microseconds => "µs",
            Self::Times => "times",
            Self::Mebibytes => "MiB",
            Self::Ratio => "×",
        }
    }
}

/// What a figure is to be.
#[derive(Clone, Copy, Debug)]
pub enum Goal {
    AtMost(f64),
    AtLeast(f64),
}

impl Goal {
    fn met(self, figure: f64) -> bool {
        match self {
            Self::AtMost(limit) => figure <= limit,
            Self::AtLeast(limit) => figure >= limit,
        }
    }

    fn text(self) -> String {
        match self {
            Self::AtMost(limit) => format!("≤ {}", number(limit)),
            Self::AtLeast(limit) => format!("≥ {}", number(limit)),
        }
    }
}

/// One quantity.
#[derive(Clone, Debug)]
pub struct Line {
    tool: &'static str,
    quantity: String,
    unit: Unit,
    samples: Samples,
    goal: Option<Goal>,
    /// What it is made of, or measured beside.
    note: String,
}

impl Line {
    pub fn new(tool: &'static str, quantity: impl Into<String>, unit: Unit, samples: Samples) -> Self {
        Self { tool, quantity: quantity.into(), unit, samples, goal: None, note: String::new() }
    }

    /// States a goal.
    pub fn goal(self, goal: Goal) -> Self {
        Self { goal: Some(goal), ..self }
    }

    /// States a goal for Stasis; a peer has none.
    pub fn goal_of_stasis(self, goal: Option<Goal>) -> Self {
        if self.tool == crate::tools::STASIS { Self { goal, ..self } } else { self }
    }

    pub fn note(self, note: impl Into<String>) -> Self {
        Self { note: note.into(), ..self }
    }

    fn met(&self) -> Option<bool> {
        self.goal.map(|goal| goal.met(self.samples.median()))
    }

    fn cells(&self) -> [String; 7] {
        let (low, high) = self.samples.quartiles();
        [
            self.tool.to_owned(),
            self.quantity.clone(),
            format!("{} {}", number(self.samples.median()), self.unit.suffix()),
            format!("{}–{} ({})", number(low), number(high), self.samples.count()),
            self.goal.map_or_else(|| "–".into(), Goal::text),
            self.met().map_or("", |met| if met { "met" } else { "MISSED" }).into(),
            self.note.clone(),
        ]
    }

    fn json(&self, measurement: &str) -> Value {
        json!({
            "measurement": measurement,
            "tool": self.tool,
            "quantity": self.quantity,
            "unit": self.unit.suffix(),
            "figure": self.samples.json(),
            "goal": self.goal.map(Goal::text),
            "met": self.met(),
            "note": self.note,
        })
    }
}

/// Three digits that count, and no exponent.
fn number(value: f64) -> String {
    let decimals = match value.abs() {
        size if size >= 100.0 || size == 0.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 0.1 => 2,
        _ => 3,
    };
    format!("{value:.decimals$}")
}

const HEADINGS: [&str; 7] = ["", "", "median", "quartiles (rounds)", "goal", "", ""];

/// The width of each column but the last; a table that is printed line by line cannot wait for its widest
/// cell.
const WIDTHS: [usize; 6] = [7, 44, 11, 20, 8, 7];

/// The lines so far; each measurement's are printed when it is done.
pub struct Report {
    machine: Machine,
    lines: Vec<(String, Line)>,
    remarks: Vec<String>,
}

impl Report {
    pub fn new(machine: Machine) -> Self {
        Self { machine, lines: Vec::new(), remarks: Vec::new() }
    }

    /// Prints on what it is measured.
    pub fn begin(&self) {
        println!("{}", self.machine);
    }

    /// Prints, and keeps, something that the figures must be read with.
    pub fn remark(&mut self, remark: String) {
        println!("{remark}");
        self.remarks.push(remark);
    }

    pub fn add(&mut self, measurement: &str, lines: Vec<Line>) {
        println!("\n{measurement}");
        print_row(&HEADINGS.map(str::to_owned));
        for line in lines {
            print_row(&line.cells());
            self.lines.push((measurement.to_owned(), line));
        }
    }

    /// Prints how many goals were met.
    pub fn end(&self) {
        let goals: Vec<bool> = self.lines.iter().filter_map(|(_, line)| line.met()).collect();
        let met = goals.iter().filter(|met| **met).count();
        println!("\n{met} of {} goals met", goals.len());
    }

    /// # Errors
    /// When the file cannot be written.
    pub fn write_json(&self, path: &Path) -> anyhow::Result<()> {
        let lines: Vec<Value> = self.lines.iter().map(|(measurement, line)| line.json(measurement)).collect();
        let all = json!({ "machine": self.machine.json(), "remarks": self.remarks, "lines": lines });
        fs::write(path, format!("{all:#}\n")).with_context(|| path.display().to_string())
    }
}

fn print_row(cells: &[String; 7]) {
    let mut row = String::from(" ");
    for (index, cell) in cells.iter().enumerate() {
        // The figures are right-aligned. Counted in characters: × and – are one.
        let padding =
            " ".repeat(WIDTHS.get(index).map_or(0, |width| width.saturating_sub(cell.chars().count())));
        row += &if index == 2 { format!(" {padding}{cell}") } else { format!(" {cell}{padding}") };
    }
    println!("{}", row.trim_end());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_is_met_by_the_median() {
        let line = |samples: [f64; 3]| {
            Line::new(crate::tools::STASIS, "x", Unit::Ratio, samples.into_iter().collect())
        };
        assert_eq!(line([1.0, 1.04, 9.0]).goal(Goal::AtMost(1.05)).met(), Some(true));
        assert_eq!(line([1.0, 1.06, 1.0]).goal(Goal::AtLeast(1.05)).met(), Some(false));
        assert_eq!(line([1.0; 3]).met(), None);
        let peer = Line::new("dmtcp", "x", Unit::Ratio, Samples::default());
        assert_eq!(peer.goal_of_stasis(Some(Goal::AtMost(1.0))).met(), None);
    }

    #[test]
    fn numbers_show_three_digits() {
        assert_eq!([1234.5, 12.345, 1.2345, 0.012].map(number), ["1234", "12.3", "1.23", "0.012"]);
    }
}
