//! What commands print: JSON for programs, aligned columns for people.

use std::io::{self, IsTerminal, Write};

use nix::libc;
use serde::Serialize;

use crate::failure::Failure;

/// Prints text on standard output.
///
/// # Errors
/// [`Failure::OutputGone`] when nobody reads it, or why it cannot be written.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Failure::OutputGone.into()),
        Err(error) => Err(anyhow::Error::from(error).context("cannot write to standard output")),
        Ok(()) => Ok(()),
    }
}

/// Prints a value as JSON.
///
/// # Errors
/// As [`print`].
pub fn json(value: &impl Serialize) -> anyhow::Result<()> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    print(&text)
}

/// Prints a line on standard error, for people.
pub fn note(text: &str) {
    // It is not what was asked for, and may be lost.
    let _ = writeln!(io::stderr(), "{text}");
}

/// Columns, the widest cell of each deciding.
pub struct Table {
    rows: Vec<Vec<String>>,
    right: &'static [usize],
}

impl Table {
    /// `right`: the columns (from 0) of numbers.
    pub fn new(header: &[&str], right: &'static [usize]) -> Self {
        Self { rows: vec![header.iter().map(ToString::to_string).collect()], right }
    }

    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().map(|cell| printable(&cell)).collect());
    }

    /// The rows as text; the last column is cut to fit the terminal, if there is one.
    pub fn render(&self) -> String {
        self.render_within(terminal_width())
    }

    fn render_within(&self, width: Option<usize>) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns)
            .map(|column| {
                self.rows
                    .iter()
                    .filter_map(|row| row.get(column))
                    .map(|cell| cell.chars().count())
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                if column > 0 {
                    line.push_str("  ");
                }
                let padding = " ".repeat(widths[column] - cell.chars().count());
                if self.right.contains(&column) {
                    line.extend([padding.as_str(), cell]);
                } else {
                    line.extend([cell.as_str(), &padding]);
                }
            }
            let line = line.trim_end();
            match width {
                Some(width) if line.chars().count() > width => text.extend(line.chars().take(width)),
                _ => text.push_str(line),
            }
            text.push('\n');
        }
        text
    }
}

/// Text from a program or an image, without what could drive the terminal.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

fn terminal_width() -> Option<usize> {
    if !io::stdout().is_terminal() {
        return None;
    }
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one winsize.
    let result = unsafe { libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, &raw mut size) };
    (result == 0 && size.ws_col > 0).then_some(size.ws_col.into())
}

/// Bytes, for people: `12.3 MiB`.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    // 1023.95 would be printed as 1024.0.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// How many there are of something, for people: `1 pack`, `2 packs`.
pub fn count(number: impl Into<u64>, what: &str) -> String {
    match number.into() {
        1 => format!("1 {what}"),
        number => format!("{number} {what}s"),
    }
}

/// A duration in microseconds, for people: `840 µs`, `1.2 ms`, `3.4 s`, `5 min`, `2 h`, `4 days`.
pub fn duration(micros: u64) -> String {
    const SECOND: u64 = 1_000_000;
    match micros {
        0..1000 => format!("{micros} µs"),
        1000..SECOND => format!("{:.1} ms", micros as f64 / 1e3),
        SECOND..60_000_000 => format!("{:.1} s", micros as f64 / 1e6),
        60_000_000..3_600_000_000 => format!("{} min", micros / (60 * SECOND)),
        3_600_000_000..172_800_000_000 => format!("{} h", micros / (3600 * SECOND)),
        _ => format!("{} days", micros / (86_400 * SECOND)),
    }
}

/// A checkpoint's pause in microseconds, for people; 0 is that of processes which were held until their end.
pub fn pause(micros: u64) -> String {
    if micros == 0 { "-".into() } else { duration(micros) }
}

/// The time, in microseconds since 1970.
pub fn now_us() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

/// A time in microseconds since 1970, as RFC 3339 in UTC, to the millisecond.
pub fn timestamp(micros: u64) -> String {
    let seconds = micros / 1_000_000;
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil_from_days(days);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
        second / 3600,
        second / 60 % 60,
        second % 60,
        micros / 1000 % 1000
    )
}

/// The date that is `days` after 1970-01-01 in the Gregorian calendar. Years are counted from March, so
/// that the leap day is the last of a year, and in eras of 400 years, which all have the same length.
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    const DAYS_PER_ERA: u64 = 146_097;
    const FROM_YEAR_0_TO_1970: u64 = 719_468;
    let days = days + FROM_YEAR_0_TO_1970;
    let (era, day_of_era) = (days / DAYS_PER_ERA, days % DAYS_PER_ERA);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / (DAYS_PER_ERA - 1)) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

/// Hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_numbers_are_right() {
        let mut table = Table::new(&["ID", "SIZE", "COMMAND"], &[1]);
        table.row(["a".into(), "1".into(), "x".into()]);
        table.row(["bcd".into(), "12345".into(), "y\x1b[2J".into()]);
        assert_eq!(
            table.render_within(None),
            "ID    SIZE  COMMAND\na        1  x\nbcd  12345  y\u{fffd}[2J\n"
        );
        assert_eq!(table.render_within(Some(6)), "ID    \na\nbcd  1\n".replace("a\n", "a     \n"));
    }

    #[test]
    fn sizes_and_durations_keep_to_their_unit() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1024), "1.0 KiB");
        assert_eq!(bytes((1 << 20) - 1), "1.0 MiB");
        assert_eq!(bytes(u64::MAX), "16.0 EiB");
        assert_eq!(duration(999), "999 µs");
        assert_eq!(duration(1500), "1.5 ms");
        assert_eq!(duration(59_940_000), "59.9 s");
        assert_eq!(duration(3_600_000_000), "1 h");
    }

    #[test]
    fn times_are_dates_of_the_calendar() {
        assert_eq!(timestamp(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(timestamp(951_782_400_000_000), "2000-02-29T00:00:00.000Z");
        assert_eq!(timestamp(1_709_251_199_999_000), "2024-02-29T23:59:59.999Z");
        assert_eq!(timestamp(4_102_444_800_000_000), "2100-01-01T00:00:00.000Z");
    }
}
