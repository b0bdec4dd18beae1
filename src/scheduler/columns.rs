// SPDX-License-Identifier: GPL-2.0-only
//! Text of at most 80 columns, whatever is in it: numbers in a few digits with their unit, names
//! that are too long with an ellipsis, and lines that go on in the next one where they must.

use std::io::{self, Write};

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Columns of a terminal.
pub const WIDTH: usize = 80;

/// What stands for the rest of a name.
const ELLIPSIS: char = '…';

/// A number in at most five columns: exact below 100,000, with three digits above.
pub fn count(number: u64) -> String {
    const UNITS: [(u64, &str); 6] = [
        (1_000_000_000_000_000_000, "E"),
        (1_000_000_000_000_000, "P"),
        (1_000_000_000_000, "T"),
        (1_000_000_000, "G"),
        (1_000_000, "M"),
        (1000, "k"),
    ];
    if number < 100_000 {
        return number.to_string();
    }
    let unit = UNITS.into_iter().find(|(size, _)| number >= *size);
    unit.map_or_else(String::new, |(size, name)| {
        let whole = number / size;
        let rest = number % size / (size / 100).max(1);
        match whole {
            0..=9 => format!("{whole}.{rest:02}{name}"),
            10..=99 => format!("{whole}.{}{name}", rest / 10),
            _ => format!("{whole}{name}"),
        }
    })
}

/// A time of up to 9999 hours in at most five columns, with two to four digits.
pub fn time(us: u64) -> String {
    match us {
        0..1000 => format!("{us}us"),
        1000..10_000 => format!("{}.{}ms", us / 1000, us % 1000 / 100),
        10_000..1_000_000 => format!("{}ms", us / 1000),
        1_000_000..100_000_000 => format!("{}.{}s", us / 1_000_000, us % 1_000_000 / 100_000),
        100_000_000..10_000_000_000 => format!("{}s", us / 1_000_000),
        10_000_000_000..36_000_000_000_000 => format!("{}h", us / 3_600_000_000),
        _ => format!("{}d", us / 86_400_000_000),
    }
}

/// A time to the microsecond, in the largest unit that has no rest.
pub fn exact_time(us: u64) -> String {
    if us > 0 && us.is_multiple_of(1_000_000) {
        format!("{}s", us / 1_000_000)
    } else if us > 0 && us.is_multiple_of(1000) {
        format!("{}ms", us / 1000)
    } else {
        format!("{us}us")
    }
}

/// A name in at most `columns`.
pub fn name(name: &str, columns: usize) -> String {
    if name.width() <= columns {
        return name.to_owned();
    }
    let mut short = String::new();
    let mut used = 1;
    for letter in name.chars() {
        used += letter.width().unwrap_or(0);
        if used > columns {
            break;
        }
        short.push(letter);
    }
    short.push(ELLIPSIS);
    short
}

/// Writes parts, one space between them, and goes on below the first where a line is full; no
/// part may be longer than what is left of a line after the `indent`.
///
/// # Errors
/// When `out` cannot be written to.
pub fn line<I>(out: &mut dyn Write, indent: usize, parts: I) -> io::Result<()>
where
    I: IntoIterator,
    I::Item: AsRef<str>,
{
    let mut used = 0;
    for part in parts {
        let part = part.as_ref();
        if used > 0 && used + 1 + part.trim_end().width() > WIDTH {
            write!(out, "\n{:indent$}", "")?;
            used = indent;
        } else if used > 0 {
            write!(out, " ")?;
            used += 1;
        }
        write!(out, "{part}")?;
        used += part.width();
    }
    writeln!(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_their_size() {
        for (number, text) in [
            (0, "0"),
            (99_999, "99999"),
            (100_000, "100k"),
            (999_999, "999k"),
            (1_234_567, "1.23M"),
            (12_345_678, "12.3M"),
            (1_009_000_000, "1.00G"),
            (u64::MAX, "18.4E"),
        ] {
            assert_eq!(count(number), text);
            assert!(text.len() <= 5);
        }
    }

    #[test]
    fn times_keep_their_size() {
        for (us, text) in [
            (0, "0us"),
            (999, "999us"),
            (1999, "1.9ms"),
            (10_000, "10ms"),
            (999_999, "999ms"),
            (1_250_000, "1.2s"),
            (99_999_999, "99.9s"),
            (9_999_999_999, "9999s"),
            (10_800_000_000, "3h"),
            (35_999_999_999_999, "9999h"),
            (36_000_000_000_000, "416d"),
            (u64::MAX, "213503982d"),
        ] {
            assert_eq!(time(us), text);
        }
        for (us, text) in [
            (0, "0us"),
            (100_000, "100ms"),
            (1_000_001, "1000001us"),
            (2_000_000, "2s"),
        ] {
            assert_eq!(exact_time(us), text);
        }
    }

    #[test]
    fn names_are_cut_by_columns() {
        assert_eq!(name("guest", 5), "guest");
        assert_eq!(name("guests", 5), "gues…");
        assert_eq!(name("客客客", 5), "客客…");
        assert_eq!(name("客客客", 4), "客…");
    }

    #[test]
    fn a_line_that_is_full_goes_on_below() {
        let mut text = Vec::new();
        line(&mut text, 4, ["x".repeat(70), "y".repeat(9), "z".into()]).unwrap();
        let text = String::from_utf8(text).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines,
            ["x".repeat(70) + " " + &"y".repeat(9), "    z".into()]
        );
    }
}
