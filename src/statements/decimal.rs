//! Numbers as they are written, compared digit by digit: no double comes in between, which would take a number for its
//! neighbour.

use std::cmp::Ordering;

/// A number: its digits without zeros in front and behind, and by which power of ten the point stands before the first
/// one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Decimal {
    negative: bool,
    digits: String,
    point: i64,
}

impl Decimal {
    /// Reads a number as JSON writes it. `None` for what is none.
    pub fn read(text: &str) -> Option<Decimal> {
        let (negative, rest) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
        let (mantissa, exponent) = rest.split_once(['e', 'E']).unwrap_or((rest, "0"));
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let is_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || !is_digits(whole) || !is_digits(fraction) {
            return None;
        }
        let exponent = match exponent.trim_start_matches('+').parse::<i64>() {
            Ok(exponent) => exponent,
            // So many digits that nothing else counts.
            Err(_) if is_digits(exponent.trim_start_matches(['+', '-'])) && !exponent.is_empty() => {
                if exponent.starts_with('-') { i64::MIN / 2 } else { i64::MAX / 2 }
            }
            Err(_) => return None,
        };
        let digits = format!("{whole}{fraction}");
        let significant = digits.trim_start_matches('0');
        let zeros = digits.len() - significant.len();
        let count = |length: usize| i64::try_from(length).unwrap_or(i64::MAX / 4);
        let digits = significant.trim_end_matches('0').to_owned();
        if digits.is_empty() {
            return Some(Decimal { negative: false, digits, point: 0 });
        }
        let point = count(whole.len()).saturating_sub(count(zeros)).saturating_add(exponent);
        Some(Decimal { negative, digits, point })
    }

    /// Rounded to so many digits behind the point, halves away from zero, as the server rounds a `numeric`.
    pub fn rounded(&self, scale: usize) -> Decimal {
        let scale = i64::try_from(scale).unwrap_or(i64::MAX / 4);
        let kept = self.point.saturating_add(scale);
        let zero = || Decimal { negative: false, digits: String::new(), point: 0 };
        let Ok(kept) = usize::try_from(kept) else { return zero() };
        if kept >= self.digits.len() {
            return self.clone();
        }
        let (before, behind) = self.digits.split_at_checked(kept).unwrap_or((&self.digits, ""));
        let mut point = self.point;
        let mut digits = before.to_owned();
        if behind.starts_with(['5', '6', '7', '8', '9']) {
            let nines = before.len() - before.trim_end_matches('9').len();
            digits.truncate(before.len() - nines);
            match digits.pop().and_then(|last| last.to_digit(10)) {
                Some(last) => digits.push(char::from_digit(last + 1, 10).unwrap_or('9')),
                None => {
                    digits.push('1');
                    point += 1;
                }
            }
        }
        let digits = digits.trim_end_matches('0').to_owned();
        if digits.is_empty() { zero() } else { Decimal { negative: self.negative, digits, point } }
    }

    /// It is as far from zero as `other`, or farther, on either side.
    pub fn reaches(&self, other: &Decimal) -> bool {
        self.magnitude(other).is_ge()
    }

    fn magnitude(&self, other: &Decimal) -> Ordering {
        match (self.digits.is_empty(), other.digits.is_empty()) {
            (true, true) => Ordering::Equal,
            (true, false) => Ordering::Less,
            (false, true) => Ordering::Greater,
            // Without zeros behind, a text that goes on is the larger one.
            (false, false) => self.point.cmp(&other.point).then_with(|| self.digits.cmp(&other.digits)),
        }
    }
}

impl Ord for Decimal {
    fn cmp(&self, other: &Decimal) -> Ordering {
        match (self.negative, other.negative) {
            (false, false) => self.magnitude(other),
            (true, true) => other.magnitude(self),
            (true, false) => Ordering::Less,
            (false, true) => Ordering::Greater,
        }
    }
}

impl PartialOrd for Decimal {
    fn partial_cmp(&self, other: &Decimal) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::Decimal;

    #[test]
    fn numbers_are_rounded_as_the_server_rounds_them() {
        for (text, scale, expected) in [
            ("9.96", 1, "10.0"),
            ("9.94", 1, "9.9"),
            ("-9.95", 1, "-10"),
            ("0.05", 1, "0.1"),
            ("0.04999", 1, "0"),
            ("0.5", 0, "1"),
            ("0.049", 0, "0"),
            ("999.5", 0, "1000"),
            ("1.0005", 3, "1.001"),
            ("1e-400", 2, "0"),
            ("12e10", 2, "120000000000"),
            ("109.996", 2, "110"),
            ("0", 2, "0"),
        ] {
            let rounded = Decimal::read(text).unwrap().rounded(scale);
            assert_eq!(Some(rounded), Decimal::read(expected), "{text} to {scale}");
        }
    }

    #[test]
    fn numbers_are_compared_as_they_are_written() {
        let ordered = [
            "-1e400",
            "-12",
            "-1.2000000000000000001",
            "-1.2",
            "-1e-99999999999999999999",
            "0",
            "1e-400",
            "0.1",
            "0.1000000000000000055",
            "1",
            "100",
            "100.000000000000001",
            "9223372036854775807",
            "9223372036854775808",
            "1e400",
            "1e99999999999999999999",
        ];
        let read: Vec<Decimal> = ordered.iter().map(|text| Decimal::read(text).unwrap()).collect();
        for (n, pair) in read.windows(2).enumerate() {
            assert!(pair[0] < pair[1], "{} < {}", ordered[n], ordered[n + 1]);
        }
        for (one, other) in
            [("1.0", "1"), ("-0", "0"), ("0.00e9", "0"), ("12e1", "120"), ("1200E-1", "120.0"), ("007", "7")]
        {
            assert_eq!(Decimal::read(one), Decimal::read(other), "{one} = {other}");
        }
        for none in ["", "-", "x", "1x", ".5", "1e", "true", "\"1\"", "1e+x"] {
            assert_eq!(Decimal::read(none), None, "{none}");
        }
    }
}
