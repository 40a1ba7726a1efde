//! How often and how long after a failure to try again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ureq::http::HeaderMap;

use super::error::PullError;

/// A wait is cut into these, so that it ends soon after everything else has.
const SLICE: Duration = Duration::from_millis(100);

/// A failure.
#[derive(Debug)]
pub(super) enum Trouble {
    /// May be gone next time.
    Transient {
        /// What to say if it stays.
        error: PullError,
        /// How long the server asks to wait.
        wait: Option<Duration>,
    },
    /// Will not go away.
    Final(PullError),
}

impl From<PullError> for Trouble {
    fn from(error: PullError) -> Self {
        Self::Final(error)
    }
}

/// When to give up.
#[derive(Clone)]
pub struct Patience {
    /// Failures in a row, without a byte of progress between them, that are one too many.
    pub max_failures: u32,
    /// The wait after the first of them; it doubles with each.
    pub first_wait: Duration,
    /// The longest wait that a server may ask for.
    pub longest_wait: Duration,
    /// What waits.
    pub wait: Arc<dyn Fn(Duration) + Send + Sync>,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            max_failures: 5,
            first_wait: Duration::from_secs(1),
            longest_wait: Duration::from_secs(120),
            wait: Arc::new(thread::sleep),
        }
    }
}

impl Patience {
    /// Calls until it works. `attempt` returns whether the failure came after progress as well.
    /// `on_wait` is told about every wait.
    pub(super) fn insist<T>(
        &self,
        stop: &AtomicBool,
        on_wait: &dyn Fn(&PullError, Duration),
        attempt: &mut dyn FnMut() -> Result<T, (Trouble, bool)>,
    ) -> Result<T, PullError> {
        let mut n_failures = 0;
        loop {
            if stop.load(Ordering::Relaxed) {
                return Err(PullError::Stopped);
            }
            let (error, asked) = match attempt() {
                Ok(done) => return Ok(done),
                Err((Trouble::Final(error), _)) => return Err(error),
                Err((Trouble::Transient { error, wait }, has_progress)) => {
                    n_failures = if has_progress { 1 } else { n_failures + 1 };
                    (error, wait)
                }
            };
            let wait = asked.unwrap_or_else(|| self.first_wait * (1 << (n_failures - 1).min(16)));
            if n_failures >= self.max_failures || wait > self.longest_wait {
                return Err(error);
            }
            on_wait(&error, wait);
            self.pause(wait, stop);
        }
    }

    fn pause(&self, mut wait: Duration, stop: &AtomicBool) {
        while !wait.is_zero() && !stop.load(Ordering::Relaxed) {
            let slice = wait.min(SLICE);
            (self.wait)(slice);
            wait -= slice;
        }
    }
}

/// What a server asks: `Retry-After` in seconds or as a date, or the seconds to the reset in the
/// Hub's own `RateLimit`.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(value) = text("retry-after") {
        let seconds = value.trim().parse::<u64>().ok();
        return seconds.or_else(|| seconds_until(value.trim())).map(Duration::from_secs);
    }
    let reset = text("ratelimit")?.split(';').find_map(|part| part.trim().strip_prefix("t="))?;
    reset.trim().parse().ok().map(Duration::from_secs)
}

/// Seconds from now to an HTTP date, e.g. `Wed, 21 Oct 2026 07:28:00 GMT`.
fn seconds_until(date: &str) -> Option<u64> {
    let at = unix_seconds(date)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs();
    Some(at.saturating_sub(now))
}

fn unix_seconds(date: &str) -> Option<u64> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let rest = date.strip_suffix(" GMT")?.split_once(", ")?.1;
    let parts: Vec<_> = rest.split([' ', ':']).collect();
    let [day, month, year, hour, minute, second] = parts[..] else { return None };
    let number = |text: &str| text.parse::<u64>().ok();
    let month_idx = MONTHS.iter().position(|name| *name == month)? as u64;
    let (day, year) = (number(day)?, number(year)?);
    let (hour, minute, second) = (number(hour)?, number(minute)?, number(second)?);
    if !(1970..=9999).contains(&year) || !(1..=31).contains(&day) || hour > 23 || minute > 59 {
        return None;
    }
    // Years begin in March here, so that the leap day is the last.
    let year = if month_idx < 2 { year - 1 } else { year };
    let days_of_months = (153 * ((month_idx + 10) % 12) + 2) / 5;
    let days = year * 365 + year / 4 - year / 100 + year / 400 + days_of_months + day - 1;
    const DAYS_TO_1970: u64 = 719_468;
    Some(((days - DAYS_TO_1970) * 24 + hour) * 3600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    fn patience() -> (Patience, Arc<Mutex<Duration>>) {
        let waited = Arc::new(Mutex::new(Duration::ZERO));
        let sum = Arc::clone(&waited);
        let wait: Arc<dyn Fn(Duration) + Send + Sync> =
            Arc::new(move |d| *sum.lock().unwrap() += d);
        (Patience { wait, ..Patience::default() }, waited)
    }

    fn transient(wait: Option<u64>) -> Trouble {
        let error = PullError::Server { host: "h".into(), status: 503 };
        Trouble::Transient { error, wait: wait.map(Duration::from_secs) }
    }

    #[test]
    fn waits_double_and_end() {
        let (patience, waited) = patience();
        let mut n = 0;
        let result: Result<(), _> =
            patience.insist(&AtomicBool::new(false), &|_, _| {}, &mut || {
                n += 1;
                Err((transient(None), false))
            });
        assert!(matches!(result, Err(PullError::Server { status: 503, .. })));
        assert_eq!((n, *waited.lock().unwrap()), (5, Duration::from_secs(1 + 2 + 4 + 8)));
    }

    #[test]
    fn progress_renews_patience_and_a_server_says_how_long() {
        let (patience, waited) = patience();
        let mut n = 0;
        let done = patience.insist(&AtomicBool::new(false), &|_, _| {}, &mut || {
            n += 1;
            if n <= 20 { Err((transient(Some(7)), true)) } else { Ok(n) }
        });
        assert_eq!(done.unwrap(), 21);
        assert_eq!(*waited.lock().unwrap(), Duration::from_secs(140));
    }

    #[test]
    fn too_long_a_wait_and_a_final_failure_end_at_once() {
        let (patience, waited) = patience();
        let stop = AtomicBool::new(false);
        let ends = |make: &dyn Fn() -> Trouble| {
            let mut n = 0;
            let result: Result<(), _> = patience.insist(&stop, &|_, _| {}, &mut || {
                n += 1;
                Err((make(), true))
            });
            result.is_err() && n == 1
        };
        assert!(ends(&|| transient(Some(3600))));
        assert!(ends(&|| Trouble::Final(PullError::Stopped)));
        stop.store(true, Ordering::Relaxed);
        let result = patience.insist(&stop, &|_, _| {}, &mut || Ok(()));
        assert!(matches!(result, Err(PullError::Stopped)));
        assert_eq!(*waited.lock().unwrap(), Duration::ZERO);
    }

    #[test]
    fn waits_are_seconds_dates_or_the_hubs_own() {
        let of = |name: &'static str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            retry_after(&headers).map(|wait| wait.as_secs())
        };
        assert_eq!(of("retry-after", "7"), Some(7));
        assert_eq!(of("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT"), Some(0));
        assert!(of("retry-after", "Fri, 31 Dec 9999 23:59:59 GMT").is_some_and(|s| s > 1 << 32));
        assert_eq!(of("retry-after", "soon"), None);
        assert_eq!(of("ratelimit", "\"resolvers\";r=0;t=55"), Some(55));
        assert_eq!(of("ratelimit", "none"), None);
    }

    #[test]
    fn http_dates_are_seconds() {
        // `date -u -d ... +%s`
        for (date, seconds) in [
            ("Thu, 01 Jan 1970 00:00:00 GMT", Some(0)),
            ("Wed, 21 Oct 2015 07:28:00 GMT", Some(1_445_412_480)),
            ("Tue, 29 Feb 2028 12:00:01 GMT", Some(1_835_438_401)),
            ("21 Oct 2015", None),
            ("Wed, 21 Foo 2015 07:28:00 GMT", None),
            ("Wed, 0 Jan 1970 00:00:00 GMT", None),
        ] {
            assert_eq!(unix_seconds(date), seconds, "{date}");
        }
    }
}
