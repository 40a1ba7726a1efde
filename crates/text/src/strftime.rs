//! `strftime_now` for templates: the C format letters, English names, no locale, no clock.

use crate::{Error, Result};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] =
    ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// Year, month 1–12, day 1–31 of a day counted from 1970-01-01 (proleptic Gregorian).
fn civil(days: i64) -> (i64, i64, i64) {
    // Years start in March here, so that the leap day is the last one of a year.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// Formats `unix_s`, seconds since 1970-01-01 00:00 on the clock to be shown.
pub(crate) fn strftime(format: &str, unix_s: i64) -> Result<String> {
    // ±100,000 years: keeps the arithmetic far from overflow.
    let unix_s = unix_s.clamp(-3_155_760_000_000, 3_155_760_000_000);
    let (days, second) = (unix_s.div_euclid(86_400), unix_s.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    let hour12 = if hour % 12 == 0 { 12 } else { hour % 12 };
    let yday = days - day_number_of_new_year(days, month, day) + 1;
    let month_name = MONTHS[(month - 1) as usize];
    let day_name = DAYS[days.rem_euclid(7) as usize];
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut letter = chars.next();
        let padded = letter != Some('-');
        if !padded {
            letter = chars.next();
        }
        let two = |n: i64| if padded { format!("{n:02}") } else { n.to_string() };
        out += &match letter {
            Some('Y') => year.to_string(),
            Some('y') => two(year.rem_euclid(100)),
            Some('m') => two(month),
            Some('d') => two(day),
            Some('e') => format!("{day:2}"),
            Some('H') => two(hour),
            Some('I') => two(hour12),
            Some('M') => two(minute),
            Some('S') => two(second),
            Some('j') => format!("{yday:03}"),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            Some('B') => month_name.to_owned(),
            Some('b' | 'h') => month_name[..3].to_owned(),
            Some('A') => day_name.to_owned(),
            Some('a') => day_name[..3].to_owned(),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('D') => format!("{month:02}/{day:02}/{:02}", year.rem_euclid(100)),
            Some('R') => format!("{hour:02}:{minute:02}"),
            Some('%') => "%".to_owned(),
            other => {
                let letter = other.map_or(String::new(), String::from);
                return Err(Error::Model(format!("strftime_now: %{letter} is not supported")));
            }
        };
    }
    Ok(out)
}

/// Day number of January 1st of the year in which `days` lies.
fn day_number_of_new_year(days: i64, month: i64, day: i64) -> i64 {
    let mut first = days - (day - 1);
    for _ in 1..month {
        let (_, _, last_day) = civil(first - 1);
        first -= last_day;
    }
    first
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_agree_with_the_calendar() {
        for (unix_s, format, want) in [
            (0, "%Y-%m-%d %H:%M:%S %A %j", "1970-01-01 00:00:00 Thursday 001"),
            (951_782_400, "%d %b %Y, %a", "29 Feb 2000, Tue"),
            (1_735_689_599, "%-d %B %Y %I:%M %p day %j", "31 December 2024 11:59 PM day 366"),
            (1_767_225_600, "%F %T %D %y %e %%", "2026-01-01 00:00:00 01/01/26 26  1 %"),
            (-1, "%F %R", "1969-12-31 23:59"),
        ] {
            assert_eq!(strftime(format, unix_s).unwrap(), want, "{unix_s} {format}");
        }
        for unix_s in [i64::MIN, i64::MAX] {
            strftime("%F %j", unix_s).unwrap();
        }
    }

    #[test]
    fn an_unknown_letter_is_named() {
        let error = strftime("%Q", 0).unwrap_err().to_string();
        assert!(error.contains("%Q"), "{error}");
        assert!(strftime("100%", 0).is_err());
    }
}
