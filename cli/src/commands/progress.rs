//! How far an operation is: a bar on a terminal, lines now and then elsewhere.

use std::io::{IsTerminal as _, stderr};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::Instant;

use super::operation::Standing;
use crate::output;

/// The shortest time between two lines.
const LINE_EVERY: Duration = Duration::from_secs(2);

/// Where progress goes.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    lines: bool,
    last: Option<(Instant, String)>,
}

impl Progress {
    /// Nowhere.
    pub(crate) const fn silent() -> Self {
        Self { bar: None, lines: false, last: None }
    }

    /// A bar if stderr is a terminal, else lines.
    pub(crate) fn stderr() -> Self {
        if !stderr().is_terminal() {
            return Self { bar: None, lines: true, last: None };
        }
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
        // The rate and the rest of the time are the agent's own, in the message: this side sees only samples.
        let style = ProgressStyle::with_template("{wide_bar:.cyan} {bytes}/{total_bytes} {msg}");
        if let Ok(style) = style {
            bar.set_style(style);
        }
        Self { bar: Some(bar), lines: false, last: None }
    }

    /// Shows a status.
    pub(crate) fn show(&mut self, status: &Standing) {
        if let Some(bar) = &self.bar {
            bar.set_length(status.progress.bytes_total);
            bar.set_position(status.progress.bytes_done);
            bar.set_message(rest(status));
        } else if self.lines && !status.phase.is_final() {
            self.line(line(status));
        }
    }

    /// Shows why nothing is known at present.
    pub(crate) fn trouble(&mut self, why: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(why.to_owned()),
            None if self.lines => self.line(why.to_owned()),
            None => {}
        }
    }

    fn line(&mut self, line: String) {
        let due = self.last.as_ref().is_none_or(|(at, last)| at.elapsed() >= LINE_EVERY && *last != line);
        if due {
            eprintln!("{line}");
            self.last = Some((Instant::now(), line));
        }
    }

    /// Takes the bar away.
    pub(crate) fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

/// Phase, rate, and the time that is left.
fn rest(status: &Standing) -> String {
    let step = if status.reason.is_empty() { status.phase.as_str() } else { status.reason.as_str() };
    let mut parts = vec![step.to_owned()];
    let rate = status.progress.bytes_per_second;
    if rate >= 1.0 {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate for people")]
        parts.push(format!("{}/s", output::bytes(rate as u64)));
    }
    if let Some(eta) = status.progress.eta_seconds.filter(|eta| eta.is_finite() && *eta >= 0.0) {
        parts.push(format!("{eta:.0} s left"));
    }
    if !status.message.is_empty() {
        parts.push(output::plain(&status.message));
    }
    parts.join(", ")
}

fn line(status: &Standing) -> String {
    let progress = &status.progress;
    format!(
        "{} of {}, {} of {} files, {}",
        output::bytes(progress.bytes_done),
        output::bytes(progress.bytes_total),
        progress.files_done,
        progress.files_total,
        rest(status)
    )
}

#[cfg(test)]
mod tests {
    use fluvial_model::kinds::{OperationPhase, Progress as Done};

    use super::*;

    #[test]
    fn a_line_says_how_far_how_fast_and_how_long_still() {
        let progress = Done {
            files_done: 1,
            files_total: 4,
            bytes_done: 1 << 20,
            bytes_total: 4 << 20,
            bytes_per_second: 2048.0,
            eta_seconds: Some(1536.4),
        };
        let status = Standing {
            phase: OperationPhase::Executing,
            reason: "Copying".to_owned(),
            progress,
            ..Standing::default()
        };
        assert_eq!(line(&status), "1.00 MiB of 4.00 MiB, 1 of 4 files, Copying, 2.00 KiB/s, 1536 s left");
        assert_eq!(line(&Standing::default()), "0 B of 0 B, 0 of 0 files, Pending");
    }
}
