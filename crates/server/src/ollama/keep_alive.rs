//! `keep_alive`: seconds, a duration, 0 for at once, or a negative value for ever.

use std::time::Duration;

use serde_json::Value;

use crate::failure::Failure;
use crate::http::fields::Fields;
use crate::http::keys::Caller;
use crate::models::{KeepAlive, MAX_KEEP_ALIVE_S};

const MAX_S: f64 = MAX_KEEP_ALIVE_S as f64;

/// Takes the field. A model that stays for ever keeps others out: that needs the right to.
pub fn keep_alive(fields: &mut Fields, caller: &Caller) -> Result<Option<KeepAlive>, Failure> {
    let Some(value) = fields.take("keep_alive") else { return Ok(None) };
    let s = match &value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => seconds(text),
        _ => None,
    };
    match s {
        Some(s) if s < 0.0 => {
            caller.check_admin()?;
            Ok(Some(KeepAlive::Forever))
        }
        Some(s) if s <= MAX_S => Ok(Some(KeepAlive::For(Duration::from_secs_f64(s)))),
        _ => {
            let reason = format!(
                "must be seconds, a duration such as 90s, 5m or 1h30m, at most {MAX_S} seconds, or \
                 -1 for ever"
            );
            Err(fields.invalid("keep_alive", reason))
        }
    }
}

/// Go's durations, and bare seconds.
fn seconds(text: &str) -> Option<f64> {
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1.0, rest),
        None => (1.0, text),
    };
    let is_bare = !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit());
    if is_bare {
        return rest.parse::<f64>().ok().map(|s| sign * s);
    }
    let mut s = 0.0;
    loop {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, unit) = rest.split_at(end);
        let end = unit.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(unit.len());
        let (unit, next) = unit.split_at(end);
        let unit_s = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        s += number.parse::<f64>().ok()? * unit_s;
        rest = next;
        if rest.is_empty() {
            return Some(sign * s);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_writes_them() {
        for (text, expected) in [
            ("5m", Some(300.0)),
            ("1h30m", Some(5400.0)),
            ("1.5h", Some(5400.0)),
            ("250ms", Some(0.25)),
            ("300", Some(300.0)),
            ("0", Some(0.0)),
            ("0s", Some(0.0)),
            ("-1", Some(-1.0)),
            ("-1m", Some(-60.0)),
            ("", None),
            ("-", None),
            ("5", Some(5.0)),
            ("5x", None),
            ("m", None),
            ("1h30", None),
            ("1..5h", None),
            ("inf", None),
            ("NaN", None),
        ] {
            assert_eq!(seconds(text), expected, "{text:?}");
        }
    }
}
