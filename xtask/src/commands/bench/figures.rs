//! Measured figures beside their goals, as a table.

use std::fmt::Write as _;

/// Unit of a figure, and its format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    /// A number of items.
    Count,
    /// A factor.
    Times,
    Seconds,
    Milliseconds,
    Mib,
}

impl Unit {
    fn write(self, value: f64) -> String {
        let digits = match value {
            _ if self == Unit::Count => 0,
            value if value >= 100.0 => 0,
            value if value >= 10.0 => 1,
            _ => 2,
        };
        let name = match self {
            Unit::Count => "",
            Unit::Times => " ×",
            Unit::Seconds => " s",
            Unit::Milliseconds => " ms",
            Unit::Mib => " MiB",
        };
        format!("{value:.digits$}{name}")
    }
}

/// Goal of a figure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Goal {
    /// No goal; the figure explains others.
    None,
    /// At most this multiple of the peer's figure.
    OfPeer(f64),
    /// At most this, independent of the peer.
    AtMost(f64),
    /// At most this multiple of the baseline, which is measured without any sidecar.
    OfBaseline { times: f64, baseline: f64 },
}

/// One line of the table.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Figure {
    pub row: &'static str,
    pub what: String,
    pub unit: Unit,
    pub ours: f64,
    /// `None` when the peer reports no such figure.
    pub peer: Option<f64>,
    pub goal: Goal,
}

impl Figure {
    /// Whether the goal is reached; `None` without a goal.
    pub(super) fn reached(&self) -> Option<bool> {
        match self.goal {
            Goal::None => None,
            Goal::OfPeer(times) => Some(self.ours <= times * self.peer?),
            Goal::AtMost(most) => Some(self.ours <= most),
            Goal::OfBaseline { times, baseline } => Some(self.ours <= times * baseline),
        }
    }

    /// Whether ours is smaller, both are equal, or the peer has no figure.
    pub(super) fn ahead(&self) -> bool {
        self.peer.is_none_or(|peer| self.ours <= peer)
    }

    /// Our figure divided by the peer's, when that is meaningful.
    pub(super) fn ratio(&self) -> String {
        match self.peer {
            Some(peer) if peer > 0.0 => format!("{:.2}", self.ours / peer),
            _ => "–".to_owned(),
        }
    }

    pub(super) fn goal(&self) -> String {
        match self.goal {
            Goal::None => "–".to_owned(),
            Goal::OfPeer(times) => format!("≤ {times:.2} of the peer"),
            Goal::AtMost(most) => format!("≤ {}", self.unit.write(most)),
            Goal::OfBaseline { times, baseline } => {
                format!("≤ {times} of {} without", self.unit.write(baseline))
            }
        }
    }

    fn cells(&self) -> [String; 7] {
        let verdict = match self.reached() {
            None => "",
            Some(true) => "reached",
            Some(false) => "**missed**",
        };
        [
            self.row.to_owned(),
            self.what.clone(),
            self.unit.write(self.ours),
            self.peer
                .map_or_else(|| "–".to_owned(), |peer| self.unit.write(peer)),
            self.ratio(),
            self.goal(),
            verdict.to_owned(),
        ]
    }
}

const HEADINGS: [&str; 7] = [
    "row",
    "figure",
    "ours",
    "Litestream",
    "ratio",
    "goal",
    "verdict",
];

/// Returns a Markdown table that is also readable on a terminal.
pub(super) fn table(figures: &[Figure]) -> String {
    let mut rows = vec![HEADINGS.map(str::to_owned)];
    rows.extend(figures.iter().map(Figure::cells));
    let width = |column: usize| {
        let widths = rows.iter().map(|row| row[column].chars().count());
        widths.max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..HEADINGS.len()).map(width).collect();
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        for (cell, width) in row.iter().zip(&widths) {
            write!(text, "| {cell:<width$} ").expect("a string takes all");
        }
        text.push_str("|\n");
        if index == 0 {
            for width in &widths {
                write!(text, "| {} ", "-".repeat(*width)).expect("a string takes all");
            }
            text.push_str("|\n");
        }
    }
    text
}

/// Returns the smallest value that is not exceeded by at least this share of all values; 0 without
/// values.
pub(super) fn percentile(values: &[f64], share: f64) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let rank = (share * values.len() as f64).ceil() as usize;
    let index = rank.clamp(1, values.len().max(1)) - 1;
    values.get(index).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(ours: f64, peer: f64, goal: Goal) -> Figure {
        Figure {
            row: "cpu",
            what: "seconds".to_owned(),
            unit: Unit::Seconds,
            ours,
            peer: Some(peer),
            goal,
        }
    }

    #[test]
    fn a_percentile_is_a_value_that_was_seen() {
        let values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(percentile(&values, 0.5), 50.0);
        assert_eq!(percentile(&values, 0.99), 99.0);
        assert_eq!(percentile(&values, 1.0), 100.0);
        assert_eq!(percentile(&[7.0], 0.01), 7.0);
        assert_eq!(percentile(&[], 0.5), 0.0);
    }

    #[test]
    fn a_goal_is_reached_up_to_its_limit() {
        let cases = [
            (figure(1.0, 2.0, Goal::OfPeer(0.5)), Some(true)),
            (figure(1.1, 2.0, Goal::OfPeer(0.5)), Some(false)),
            (figure(0.0, 0.0, Goal::AtMost(0.0)), Some(true)),
            (figure(1.0, 9.0, Goal::AtMost(0.0)), Some(false)),
            (figure(1.0, 9.0, Goal::None), None),
        ];
        for (figure, reached) in cases {
            assert_eq!(figure.reached(), reached, "{figure:?}");
        }
        let silent = Figure {
            peer: None,
            ..figure(1.0, 0.0, Goal::OfPeer(0.5))
        };
        assert_eq!((silent.reached(), silent.ahead()), (None, true));
        assert_eq!(silent.ratio(), "–");
        let goal = Goal::OfBaseline {
            times: 1.1,
            baseline: 2.0,
        };
        assert_eq!(figure(2.2, 9.0, goal).reached(), Some(true));
        assert_eq!(figure(2.3, 9.0, goal).reached(), Some(false));
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let figures = [
            figure(0.5, 123.4, Goal::OfPeer(0.5)),
            figure(12.34, 0.0, Goal::None),
        ];
        let text = table(&figures);
        let widths: Vec<usize> = text.lines().map(|line| line.chars().count()).collect();
        assert_eq!(widths.len(), 4);
        assert!(widths.iter().all(|width| *width == widths[0]), "{text}");
        assert!(text.contains("| 0.50 s "), "{text}");
        assert!(text.contains("| 123 s "), "{text}");
        assert!(text.contains("| 12.3 s "), "{text}");
        assert!(text.contains("≤ 0.50 of the peer"), "{text}");
    }
}
