//! Medians, spreads, and the table: printed, and written between two marks of docs/performance.md.

use std::fmt::Write;
use std::path::Path;

const BEGIN: &str = "<!-- begin: written by make bench -->";
const END: &str = "<!-- end: written by make bench -->";

/// The values of a measure, one for each round.
#[derive(Clone, Debug, Default)]
pub struct Values(pub Vec<f64>);

impl Values {
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }

    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// The value below which this part of all lies; between two neighbours, the mean of both for the median.
    pub fn quantile(&self, part: f64) -> f64 {
        let sorted = self.sorted();
        assert!(!sorted.is_empty(), "nothing was measured");
        let at = part * (sorted.len() - 1) as f64;
        let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
        low + (high - low) * at.fract()
    }

    /// This by `other`, round by round: each pair was measured one after the other.
    pub fn by(&self, other: &Values) -> Values {
        assert_eq!(self.0.len(), other.0.len());
        Values(self.0.iter().zip(&other.0).map(|(mine, theirs)| mine / theirs).collect())
    }

    fn show(&self, unit: Unit) -> String {
        let sorted = self.sorted();
        let (least, most) = (sorted[0], sorted[sorted.len() - 1]);
        format!("{} ({} – {})", unit.show(self.median()), unit.show(least), unit.show(most))
    }
}

/// How a value is shown.
#[derive(Clone, Copy, Debug)]
pub enum Unit {
    PerSecond,
    Milliseconds,
    Seconds,
    Mebibytes,
}

impl Unit {
    fn show(self, value: f64) -> String {
        match self {
            Unit::PerSecond => format!("{}/s", thousands(value)),
            Unit::Milliseconds => format!("{value:.2} ms"),
            Unit::Seconds => format!("{value:.2} s"),
            Unit::Mebibytes => format!("{value:.0} MiB"),
        }
    }
}

fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// What is hoped for.
#[derive(Clone, Copy, Debug)]
pub enum Aim {
    /// At least this.
    AtLeast(f64),
    /// At most this.
    AtMost(f64),
}

impl Aim {
    fn met(self, value: f64) -> bool {
        match self {
            Aim::AtLeast(least) => value >= least,
            Aim::AtMost(most) => value <= most,
        }
    }
}

/// One line of the table.
pub struct Row {
    what: String,
    values: Values,
    unit: Unit,
    beside: String,
    ratio: Option<Values>,
    aim: Option<(Aim, bool)>,
}

impl Row {
    pub fn new(what: impl Into<String>, values: &Values, unit: Unit) -> Row {
        Row { what: what.into(), values: values.clone(), unit, beside: String::new(), ratio: None, aim: None }
    }

    /// Beside something that was measured in the same rounds.
    pub fn beside(mut self, what: &str, other: &Values) -> Row {
        self.beside = format!("{what}: {}", other.show(self.unit));
        self.ratio = Some(self.values.by(other));
        self
    }

    /// An aim for the ratio.
    pub fn aim_ratio(mut self, aim: Aim) -> Row {
        self.aim = Some((aim, true));
        self
    }

    /// An aim for the value itself.
    pub fn aim(mut self, aim: Aim) -> Row {
        self.aim = Some((aim, false));
        self
    }

    fn line(&self) -> String {
        let ratio = self.ratio.as_ref().map_or_else(String::new, |ratio| format!("{:.2}", ratio.median()));
        let (aim, met) = match self.aim {
            None => (String::new(), ""),
            Some((aim, of_ratio)) => {
                let value = if of_ratio { self.ratio.as_ref().unwrap().median() } else { self.values.median() };
                let number = |number: f64| if of_ratio { format!("{number} x") } else { self.unit.show(number) };
                let text = match aim {
                    Aim::AtLeast(least) => format!("at least {}", number(least)),
                    Aim::AtMost(most) => format!("at most {}", number(most)),
                };
                (text, if aim.met(value) { "met" } else { "**missed**" })
            }
        };
        format!("| {} | {} | {} | {ratio} | {aim} | {met} |", self.what, self.values.show(self.unit), self.beside)
    }
}

/// Everything that was measured.
pub struct Report {
    foot: Vec<String>,
    rows: Vec<Row>,
}

/// What a case came to.
pub struct Outcome {
    pub rows: Vec<Row>,
    /// How it was measured.
    pub notes: Vec<String>,
}

impl Report {
    pub fn new(foot: Vec<String>) -> Report {
        Report { foot, rows: Vec::new() }
    }

    pub fn add(&mut self, outcome: Outcome) {
        for row in &outcome.rows {
            eprintln!("{}", row.line());
        }
        self.rows.extend(outcome.rows);
        self.foot.extend(outcome.notes);
    }

    pub fn table(&self) -> String {
        let mut text = String::from("| measure | median (least – most) | beside it | ratio | aim | |\n");
        text.push_str("| --- | --- | --- | --- | --- | --- |\n");
        for row in &self.rows {
            writeln!(text, "{}", row.line()).unwrap();
        }
        text.push('\n');
        for line in &self.foot {
            writeln!(text, "- {line}.").unwrap();
        }
        text
    }

    /// Replaces what stands between the marks; the prose around them stays.
    pub fn write(&self) {
        // That of this run: what was compiled may be shared with another clone.
        let folder = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| ".".into());
        let path = Path::new(&folder).join("docs/performance.md");
        let text = std::fs::read_to_string(&path).unwrap();
        let (before, rest) = text.split_once(BEGIN).expect("docs/performance.md has lost its first mark");
        let (_, after) = rest.split_once(END).expect("docs/performance.md has lost its second mark");
        std::fs::write(&path, format!("{before}{BEGIN}\n{}{END}{after}", self.table())).unwrap();
    }
}
