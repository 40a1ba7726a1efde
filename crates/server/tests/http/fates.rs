//! What becomes of each field of a request: a table, checked by asking.

use serde_json::Value;
use testkit::Script;

use crate::served::{Setup, set};

/// What becomes of a field.
pub enum Fate {
    /// The request is answered.
    Taken,
    /// 400, and the message begins with this field.
    Refused(&'static str),
}

/// Asks once for each row: the base with the row's fields beside or instead of its own.
#[track_caller]
pub fn check(path: &str, base: &Value, table: &[(Value, Fate)]) {
    let served = Setup::from(Script { answer: vec![1, 0], ..Script::default() }).serve();
    for (fields, fate) in table {
        let mut body = base.clone();
        set(&mut body, fields);
        let reply = served.post(path, &body);
        match fate {
            Fate::Taken => assert_eq!(reply.status, 200, "{fields}: {reply:?}"),
            Fate::Refused(field) => {
                assert_eq!(reply.status, 400, "{fields}: {reply:?}");
                let message = message(&reply.json());
                let rest = message.strip_prefix(field);
                let ends = rest.is_some_and(|rest| rest.starts_with([' ', '[', ':']));
                assert!(ends, "{fields} should blame {field}: {message}");
            }
        }
    }
}

/// The message of an error, in whichever form.
pub fn message(error: &Value) -> String {
    let message = error["error"]["message"].as_str().or(error["error"].as_str());
    message.unwrap_or_else(|| panic!("no message: {error}")).to_owned()
}
