//! Numbers as people read them.

use crate::figure::Unit;

/// A value with its unit, to three digits: `346 ns`, `1.80 M/s`.
pub fn value(unit: Unit, value: f64) -> String {
    if value.is_nan() {
        return "–".into();
    }
    let scale = scale(unit, value);
    scale.join(&number(value * scale.factor))
}

/// The same of a round value, without needless digits: `100 ns`, `2.5 µs`.
pub fn tick(unit: Unit, value: f64) -> String {
    let scale = scale(unit, value);
    // Six digits drop what binary fractions add.
    let rounded = (value * scale.factor * 1e6).round() / 1e6;
    scale.join(&rounded.to_string())
}

/// From the smallest to the largest: `310–402 ns`, `900 ns–1.10 µs`; a dash alone where
/// they are the same.
pub fn spread(unit: Unit, (low, high): (f64, f64)) -> String {
    if low.is_nan() || low == high {
        return "–".into();
    }
    let (of_low, of_high) = (scale(unit, low), scale(unit, high));
    if of_low.word == of_high.word {
        let low = number(low * of_high.factor);
        of_high.join(&format!("{low}–{}", number(high * of_high.factor)))
    } else {
        format!("{}–{}", value(unit, low), value(unit, high))
    }
}

/// Three digits: `0.123`, `1.23`, `12.3`, `123`; whole numbers from a hundred on, two
/// digits where there are many zeros in front.
pub fn number(value: f64) -> String {
    let digits = match value.abs() {
        _ if value.is_nan() => return "–".into(),
        _ if value == 0.0 => 0,
        small @ ..0.00995 => (1.0 - small.log10().floor()).min(20.0) as usize,
        ..0.9995 => 3,
        ..9.995 => 2,
        ..99.95 => 1,
        999.5.. => return grouped(value),
        _ => 0,
    };
    format!("{value:.digits$}")
}

/// Thousands apart: `10,000`.
pub fn size(size: u64) -> String {
    let digits = size.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A change in percent, with its sign: `+12 %`; a factor where it is a large one.
pub fn change(relative: f64) -> String {
    match relative {
        _ if relative.is_nan() => "–".into(),
        2.0.. => format!("× {}", number(1.0 + relative)),
        _ => {
            let percent = (relative * 100.0).round() + 0.0;
            let sign = match percent {
                0.0 => "±",
                0.0.. => "+",
                _ => "−",
            };
            format!("{sign}{} %", percent.abs())
        }
    }
}

fn grouped(value: f64) -> String {
    if !value.is_finite() {
        return if value > 0.0 { "∞" } else { "−∞" }.into();
    }
    let sign = if value < 0.0 { "-" } else { "" };
    sign.to_owned() + &size(value.abs().round() as u64)
}

/// Prefix and unit that keep a value between 1 and 1,000.
struct Scale {
    factor: f64,
    word: &'static str,
}

impl Scale {
    fn join(&self, number: &str) -> String {
        if self.word.is_empty() {
            number.to_owned()
        } else {
            format!("{number} {}", self.word)
        }
    }
}

fn scale(unit: Unit, value: f64) -> Scale {
    const TIME: &[(f64, &str)] = &[(1.0, "ns"), (1e3, "µs"), (1e6, "ms"), (1e9, "s")];
    const RATE: &[(f64, &str)] = &[(1.0, "/s"), (1e3, "k/s"), (1e6, "M/s"), (1e9, "G/s")];
    const BITS: &[(f64, &str)] = &[
        (1.0, "bit/s"),
        (1e3, "kbit/s"),
        (1e6, "Mbit/s"),
        (1e9, "Gbit/s"),
    ];
    const BYTES: &[(f64, &str)] = &[
        (1.0, "B"),
        (1024.0, "KiB"),
        (1_048_576.0, "MiB"),
        (1_073_741_824.0, "GiB"),
    ];
    let (steps, base) = match unit {
        Unit::Nanoseconds => (TIME, 1.0),
        Unit::Microseconds => (TIME, 1e3),
        Unit::Milliseconds => (TIME, 1e6),
        Unit::Seconds => (TIME, 1e9),
        Unit::PerSecond => (RATE, 1.0),
        Unit::BitsPerSecond => (BITS, 1.0),
        Unit::Bytes => (BYTES, 1.0),
        Unit::Count => (&[(1.0, "")][..], 1.0),
    };
    let whole = (value * base).abs();
    // Nothing has no prefix: it keeps the unit that it was measured in.
    let fits = |at: f64| {
        if whole == 0.0 {
            at <= base
        } else {
            at <= whole
        }
    };
    let &(at, word) = steps
        .iter()
        .rev()
        .find(|(at, _)| fits(*at))
        .unwrap_or(&steps[0]);
    Scale {
        factor: base / at,
        word,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_three_digits_and_a_fitting_prefix() {
        for (unit, found, words) in [
            (Unit::Nanoseconds, 346.4, "346 ns"),
            (Unit::Nanoseconds, 0.5, "0.500 ns"),
            (Unit::Nanoseconds, 12_345.0, "12.3 µs"),
            (Unit::Microseconds, 240_000.0, "240 ms"),
            (Unit::Microseconds, 9.4, "9.40 µs"),
            (Unit::Milliseconds, 0.0, "0 ms"),
            (Unit::Milliseconds, 0.05, "50.0 µs"),
            (Unit::Seconds, 5.83, "5.83 s"),
            (Unit::Seconds, 12_000.0, "12,000 s"),
            (Unit::PerSecond, 1_800_000.0, "1.80 M/s"),
            (Unit::BitsPerSecond, 9.41e9, "9.41 Gbit/s"),
            (Unit::Bytes, 4096.0, "4.00 KiB"),
            (Unit::Count, 0.0, "0"),
            (Unit::Count, 10_000.0, "10,000"),
            (Unit::Count, 1646.7, "1,647"),
            (Unit::Count, 0.000_486, "0.00049"),
            (Unit::Count, f64::NAN, "–"),
            (Unit::Nanoseconds, -3.0, "-3.00 ns"),
        ] {
            assert_eq!(value(unit, found), words);
        }
    }

    #[test]
    fn a_spread_names_its_unit_once_where_it_can() {
        assert_eq!(spread(Unit::Nanoseconds, (310.0, 402.0)), "310–402 ns");
        assert_eq!(spread(Unit::Nanoseconds, (900.0, 1100.0)), "900 ns–1.10 µs");
        assert_eq!(spread(Unit::Nanoseconds, (5.0, 5.0)), "–");
    }

    #[test]
    fn changes_have_a_sign() {
        assert_eq!(change(0.123), "+12 %");
        assert_eq!(change(-0.05), "−5 %");
        assert_eq!(change(-0.001), "±0 %");
        assert_eq!(change(3.0), "× 4.00");
    }

    #[test]
    fn thousands_are_apart() {
        assert_eq!(size(1), "1");
        assert_eq!(size(1000), "1,000");
        assert_eq!(size(1_234_567), "1,234,567");
    }
}
