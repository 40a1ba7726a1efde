//! `traceparent` of the W3C's Trace Context: which trace of the caller's a request belongs to.
//!
//! Invariants: what is not of the form is as if it were not there, as the standard has it; what is
//! logged and sent back has digits alone.

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use ring::rand::{SecureRandom, SystemRandom};

const PARENT: HeaderName = HeaderName::from_static("traceparent");
/// From the drafts of the standard's next level: which part of the trace the answer is.
pub(super) const RESPONSE: HeaderName = HeaderName::from_static("traceresponse");

/// A request's place in a trace.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Trace {
    /// Of the whole trace: 32 hexadecimal digits.
    pub id: String,
    /// Of this request: 16 hexadecimal digits.
    pub span: String,
}

impl Trace {
    /// The trace that a request names, if it names one.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let mut given = headers.get_all(PARENT).iter();
        // Two of them are not of the form.
        let (Some(parent), None) = (given.next(), given.next()) else { return None };
        let id = trace_id(parent.to_str().ok()?)?.to_owned();
        let mut span = [0; 8];
        SystemRandom::new().fill(&mut span).ok()?;
        Some(Self { id, span: span.iter().map(|byte| format!("{byte:02x}")).collect() })
    }

    /// What the answer says. No flag is set: nothing of a trace is recorded here but a line of log.
    pub fn response(&self) -> Option<HeaderValue> {
        HeaderValue::try_from(format!("00-{}-{}-00", self.id, self.span)).ok()
    }
}

/// `VERSION-TRACE-PARENT-FLAGS`; later versions may have more behind that.
fn trace_id(parent: &str) -> Option<&str> {
    let mut parts = parent.splitn(5, '-');
    let mut digits = |n: usize| {
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        parts.next().filter(|part| part.len() == n && part.bytes().all(is_digit))
    };
    let (version, trace, span, _flags) = (digits(2)?, digits(32)?, digits(16)?, digits(2)?);
    let is_set = |id: &str| id.bytes().any(|byte| byte != b'0');
    let ends = parts.next().is_none() || version != "00";
    (version != "ff" && is_set(trace) && is_set(span) && ends).then_some(trace)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

    #[test]
    fn a_parent_of_the_form_names_its_trace_and_others_name_none() {
        let check = |parent: &str, is_taken: bool| {
            assert_eq!(trace_id(parent), is_taken.then_some(TRACE), "{parent}");
        };
        let of = |version: &str, trace: &str, span: &str, flags: &str| {
            [version, trace, span, flags].join("-")
        };
        let span = "b7ad6b7169203331";
        check(&of("00", TRACE, span, "01"), true);
        check(&of("00", TRACE, span, "ff"), true);
        check(&of("cc", TRACE, span, "00"), true);
        check(&of("cc", TRACE, span, "00-what-comes-later"), true);
        check(&of("00", TRACE, span, "00-what"), false);
        check(&of("00", TRACE, span, "00-"), false);
        check(&of("cc", TRACE, span, "00what"), false);
        check(&of("ff", TRACE, span, "00"), false);
        check(&of("0", TRACE, span, "00"), false);
        check(&of("00", &TRACE.to_uppercase(), span, "00"), false);
        check(&of("00", &TRACE[1..], span, "00"), false);
        check(&of("00", &"0".repeat(32), span, "00"), false);
        check(&of("00", TRACE, &"0".repeat(16), "00"), false);
        check(&of("00", TRACE, "b7ad6b716920333x", "00"), false);
        check(&of("00", TRACE, span, "1"), false);
        check(&of("00", TRACE, span, ""), false);
        check(&format!("00-{TRACE}-{span}"), false);
        check(TRACE, false);
        check("", false);
    }

    #[test]
    fn each_request_is_a_part_of_its_own_and_two_parents_are_none() {
        let parent: HeaderValue = format!("00-{TRACE}-b7ad6b7169203331-01").parse().unwrap();
        let mut headers = HeaderMap::from_iter([(PARENT, parent.clone())]);
        let [first, second] = [(); 2].map(|()| Trace::of(&headers).unwrap());
        assert!(first.id == TRACE && second.id == TRACE && first.span != second.span);
        let response = first.response().unwrap();
        assert_eq!(trace_id(response.to_str().unwrap()), Some(TRACE));
        headers.append(PARENT, parent);
        assert_eq!(Trace::of(&headers), None);
        assert_eq!(Trace::of(&HeaderMap::new()), None);
    }
}
