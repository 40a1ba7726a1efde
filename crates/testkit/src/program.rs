//! The scripted engine as a whole process: what stands in for `offshoot-runner` in tests.

use std::io::Write;
use std::process::ExitCode;

use protocol::Hello;
use runner::{RunError, inherited};
use serde::{Deserialize, Serialize};

use crate::scripted::{Script, ScriptedLoader};

/// The environment variable that holds a [`Program`] as JSON.
pub const PROGRAM_VAR: &str = "OFFSHOOT_TEST_PROGRAM";

/// What the process does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Program {
    /// Serves a conversation.
    Serve(Script),
    /// Greets with another protocol version.
    OtherVersion,
    /// Sends bytes that are no greeting.
    Stranger,
    /// Writes this line to standard error and exits with this code before it greets.
    ExitsAtOnce(String, u8),
    /// Greets, then sends a frame that is no event.
    TalksNonsense,
}

impl Program {
    /// The value for [`PROGRAM_VAR`].
    pub fn to_env(&self) -> String {
        serde_json::to_string(self).expect("a program is plain data")
    }
}

/// The process's `main`.
pub fn scripted_runner() -> ExitCode {
    let text = std::env::var(PROGRAM_VAR).unwrap_or_else(|_| r#"{"serve": {}}"#.to_owned());
    let program: Program = serde_json::from_str(&text).expect("the program is valid JSON");
    let channel = match inherited() {
        Ok(channel) => channel,
        Err(e) => {
            eprintln!("error: {e}");
            return ExitCode::FAILURE;
        }
    };
    let mut writer = channel.writer;
    let greet = |version, writer: &mut dyn Write| {
        Hello { version, build: "scripted".into() }.write(writer).expect("the parent reads")
    };
    match program {
        Program::Serve(script) => {
            let served = runner::run(channel.reader, writer, "scripted", ScriptedLoader(script));
            return match served {
                Ok(()) => ExitCode::SUCCESS,
                Err(RunError::Reported(_)) => ExitCode::FAILURE,
                Err(e) => {
                    eprintln!("error: {e}");
                    ExitCode::FAILURE
                }
            };
        }
        Program::OtherVersion => greet(protocol::VERSION + 1, &mut writer),
        Program::Stranger => writer.write_all(b"Hello, world!").expect("the parent reads"),
        Program::ExitsAtOnce(line, code) => {
            eprintln!("{line}");
            return ExitCode::from(code);
        }
        Program::TalksNonsense => {
            greet(protocol::VERSION, &mut writer);
            writer.write_all(&[3, 0, 0, 0, 0xff, 0xff, 0xff]).expect("the parent reads");
        }
    }
    ExitCode::SUCCESS
}
