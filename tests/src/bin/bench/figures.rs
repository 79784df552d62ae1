//! The figures and how they are put: medians, percentiles, the direction of a ratio, the line and the table.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

/// What a case's number counts, and whether more of it is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    WritesPerSecond,
    ReadsPerSecond,
    MibPerSecond,
    FilesPerSecond,
    Milliseconds,
    Mib,
    CpuSecondsPerGib,
    KibPerMember,
    Cores,
    Seconds,
    Leaders,
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Self::WritesPerSecond => "writes/s",
            Self::ReadsPerSecond => "reads/s",
            Self::MibPerSecond => "MiB/s",
            Self::FilesPerSecond => "files/s",
            Self::Milliseconds => "ms",
            Self::Mib => "MiB",
            Self::CpuSecondsPerGib => "CPU s/GiB",
            Self::KibPerMember => "KiB/member",
            Self::Cores => "cores",
            Self::Seconds => "s",
            Self::Leaders => "leaders",
        }
    }

    fn more_is_better(self) -> bool {
        match self {
            Self::WritesPerSecond | Self::ReadsPerSecond | Self::MibPerSecond | Self::FilesPerSecond => true,
            Self::Milliseconds
            | Self::Mib
            | Self::CpuSecondsPerGib
            | Self::KibPerMember
            | Self::Cores
            | Self::Seconds
            | Self::Leaders => false,
        }
    }
}

/// A case before it is judged: what both sides reached in each round.
#[derive(Debug)]
pub(crate) struct Case<'a> {
    pub(crate) area: &'static str,
    pub(crate) case: String,
    pub(crate) unit: Unit,
    pub(crate) ours: &'a [f64],
    pub(crate) peer: &'a [f64],
    pub(crate) peer_name: &'a str,
    /// The ratio that the design asks for.
    pub(crate) bar: Option<f64>,
    pub(crate) note: String,
}

/// One case, as it is printed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Line {
    area: &'static str,
    case: String,
    unit: &'static str,
    ours: f64,
    peer: f64,
    peer_name: String,
    /// How many times better we are, whatever the unit.
    ratio: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    bar: Option<f64>,
    note: String,
}

impl Line {
    fn of(case: Case<'_>) -> Self {
        let (ours, peer) = (median(case.ours), median(case.peer));
        Self {
            area: case.area,
            case: case.case,
            unit: case.unit.name(),
            ours: rounded(ours),
            peer: rounded(peer),
            peer_name: case.peer_name.to_owned(),
            ratio: rounded(ratio(case.unit, ours, peer)),
            bar: case.bar,
            note: case.note,
        }
    }
}

/// What has been printed so far.
#[derive(Debug, Default)]
pub(crate) struct Report {
    lines: Vec<Line>,
}

impl Report {
    /// Prints a case's line at once, so that an interrupted run has said what it knows.
    pub(crate) fn add(&mut self, case: Case<'_>) -> anyhow::Result<()> {
        let line = Line::of(case);
        println!("{}", serde_json::to_string(&line)?);
        self.lines.push(line);
        Ok(())
    }

    /// The same, for people.
    pub(crate) fn table(&self) -> String {
        let mut table =
            format!("{:<24} {:>10} {:>12} {:>12} {:>7} {:>5}  peer\n", "case", "unit", "ours", "peer", "ratio", "bar");
        for line in &self.lines {
            let bar = line.bar.map_or_else(String::new, |bar| bar.to_string());
            let Line { case, unit, ours, peer, ratio, peer_name, .. } = line;
            // Writing to a string does not fail.
            let _ = writeln!(table, "{case:<24} {unit:>10} {ours:>12} {peer:>12} {ratio:>7} {bar:>5}  {peer_name}");
        }
        table
    }
}

/// How many times better ours is than the peer's. 0 if either is no measurement.
fn ratio(unit: Unit, ours: f64, peer: f64) -> f64 {
    if !(ours > 0.0 && peer > 0.0) {
        return 0.0;
    }
    if unit.more_is_better() { ours / peer } else { peer / ours }
}

/// The middle one; of an even number, the mean of the two in the middle. 0 if there is none.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => 0.0,
        even if even % 2 == 0 => f64::midpoint(sorted[middle - 1], sorted[middle]),
        _ => sorted[middle],
    }
}

/// The smallest of the sorted values that `percent` of them do not exceed (nearest rank). Zero if there is none.
pub(crate) fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).or_else(|| sorted.last()).copied().unwrap_or_default()
}

/// A duration as a figure.
pub(crate) fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

fn rounded(value: f64) -> f64 {
    // Rates are whole numbers, what is small keeps three digits.
    if value >= 100.0 { value.round() } else { (value * 1000.0).round() / 1000.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(values: impl IntoIterator<Item = u64>) -> Vec<Duration> {
        values.into_iter().map(Duration::from_millis).collect()
    }

    #[test]
    fn a_ratio_above_one_means_that_we_are_better_whatever_the_unit() {
        assert_eq!(ratio(Unit::WritesPerSecond, 300.0, 100.0), 3.0);
        assert_eq!(ratio(Unit::Milliseconds, 300.0, 100.0), 1.0 / 3.0);
        assert_eq!(ratio(Unit::Mib, 50.0, 100.0), 2.0);
        assert_eq!(ratio(Unit::CpuSecondsPerGib, 1.0, 4.0), 4.0);
    }

    #[test]
    fn what_was_not_measured_is_never_better() {
        assert_eq!(ratio(Unit::Milliseconds, 0.0, 100.0), 0.0);
        assert_eq!(ratio(Unit::MibPerSecond, 100.0, 0.0), 0.0);
        assert_eq!(ratio(Unit::MibPerSecond, f64::NAN, 1.0), 0.0);
    }

    #[test]
    fn the_median_is_not_moved_by_one_bad_round() {
        assert_eq!(median(&[900.0, 1.0, 1000.0]), 900.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(&[]), 0.0);
    }

    #[test]
    fn a_percentile_is_one_of_the_values() {
        let hundred = ms(1..=100);
        assert_eq!([1, 50, 99, 100].map(|p| percentile(&hundred, p).as_millis()), [1, 50, 99, 100]);
        assert_eq!(percentile(&ms([7]), 99), Duration::from_millis(7));
        assert_eq!(percentile(&ms([1, 2, 3]), 50), Duration::from_millis(2));
        assert_eq!(percentile(&[], 50), Duration::ZERO);
    }

    #[test]
    fn a_line_has_the_fields_of_the_contract_in_their_order() {
        let line = Line::of(Case {
            area: "hub",
            case: "write-1".into(),
            unit: Unit::WritesPerSecond,
            ours: &[1000.4, 1.0, 2000.0],
            peer: &[500.0],
            peer_name: "etcd",
            bar: Some(1.2),
            note: String::new(),
        });
        assert_eq!(
            serde_json::to_string(&line).unwrap(),
            r#"{"area":"hub","case":"write-1","unit":"writes/s","ours":1000.0,"peer":500.0,"peer_name":"etcd","ratio":2.001,"bar":1.2,"note":""}"#
        );
    }
}
