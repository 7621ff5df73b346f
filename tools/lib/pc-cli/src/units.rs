//! Durations and sizes as people write them.

use std::time::Duration;

/// Reads a duration: a number and its unit (`us`, `ms`, `s`, `m`, `h`), as in `100ms` or `1.5s`.
/// A bare `0` needs no unit. Fit for clap's `value_parser`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split(text)?;
    let seconds = match unit {
        "us" | "µs" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        "" if number == 0.0 => 1.0,
        _ => return Err("expected a duration with its unit, such as 100ms, 5s or 2m".into()),
    };
    Duration::try_from_secs_f64(number * seconds).map_err(|_| "the duration is out of range".into())
}

/// Reads how long a silent peer is waited for: no less than a second, as one that is alive may say so but twice in it.
pub fn parse_timeout(text: &str) -> Result<Duration, String> {
    let least = Duration::from_secs(1);
    let timeout = parse_duration(text)?;
    if timeout < least { Err("one second or more is wanted".into()) } else { Ok(timeout) }
}

/// Reads a size in bytes: `4096`, `64K`, `16M`, `2G` (powers of 1024, also written `KiB` …) or
/// `10kB`, `10MB` (powers of 1000). Fit for clap's `value_parser`.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text)?;
    let unit: u64 = match unit {
        "" | "B" => 1,
        "K" | "k" | "KiB" => 1 << 10,
        "M" | "MiB" => 1 << 20,
        "G" | "GiB" => 1 << 30,
        "T" | "TiB" => 1 << 40,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        _ => return Err("expected a size such as 4096, 64K, 16MiB or 2G".into()),
    };
    if number.fract() == 0.0 && number < 9e15 {
        return (number as u64).checked_mul(unit).ok_or_else(|| "the size is out of range".into());
    }
    let bytes = number * unit as f64;
    if bytes < 9e15 { Ok(bytes as u64) } else { Err("the size is out of range".into()) }
}

/// A number that is finite and not negative, and what stands after it.
fn split(text: &str) -> Result<(f64, &str), String> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let number = number.parse().map_err(|_| String::from("expected a number"))?;
    Ok((number, unit.trim_start()))
}

/// A size for people, in powers of 1024: `512 B`, `1.5 MiB`.
pub fn show_size(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", units[unit])
}

/// A duration for people, in three digits or so: `850 µs`, `12.3 ms`, `4.21 s`, `3 m 20 s`.
pub fn show_duration(duration: Duration) -> String {
    let micros = duration.as_micros();
    match micros {
        0..1_000 => format!("{micros} µs"),
        1_000..1_000_000 => format!("{:.1} ms", micros as f64 / 1e3),
        1_000_000..120_000_000 => format!("{:.2} s", micros as f64 / 1e6),
        _ => format!("{} m {} s", duration.as_secs() / 60, duration.as_secs() % 60),
    }
}

/// Bytes over time for people: `117.4 MiB/s`. Empty time gives nothing.
pub fn show_rate(bytes: u64, over: Duration) -> Option<String> {
    let seconds = over.as_secs_f64();
    (seconds > 0.0).then(|| format!("{}/s", show_size((bytes as f64 / seconds) as u64)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_a_unit_and_a_sane_number() {
        assert_eq!(parse_duration("100ms"), Ok(Duration::from_millis(100)));
        assert_eq!(parse_duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse_duration("2 m"), Ok(Duration::from_secs(120)));
        assert_eq!(parse_duration("250us"), Ok(Duration::from_micros(250)));
        assert_eq!(parse_duration("0"), Ok(Duration::ZERO));
        assert!(parse_timeout("999ms").is_err() && parse_timeout("1s").is_ok());
        for bad in ["", "5", "ms", "-1s", "1e3s", "1..5s", "5 parsecs", "99999999999999999999h"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_tell_powers_of_1024_from_powers_of_1000() {
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("64K"), Ok(65_536));
        assert_eq!(parse_size("1.5MiB"), Ok(1_572_864));
        assert_eq!(parse_size("10MB"), Ok(10_000_000));
        for bad in ["", "G", "-1", "1Q", "99999999999T", "nan"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn figures_for_people_do_not_jump_at_the_borders() {
        assert_eq!(show_size(1023), "1023 B");
        assert_eq!(show_size(1 << 20), "1.0 MiB");
        assert_eq!(show_size((1 << 30) - 1), "1.0 GiB");
        assert_eq!(show_duration(Duration::from_micros(12_345)), "12.3 ms");
        assert_eq!(show_duration(Duration::from_secs(200)), "3 m 20 s");
        assert_eq!(show_rate(5, Duration::ZERO), None);
    }
}
