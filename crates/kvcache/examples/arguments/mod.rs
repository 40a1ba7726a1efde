//! What the examples that print tables do with their arguments.

use std::process::ExitCode;
use std::str::FromStr;

/// The numbers behind `flag`, parted by commas.
pub fn numbers<T: FromStr>(
    arguments: &[String],
    flag: &str,
    default: &str,
) -> Result<Vec<T>, String> {
    let given = arguments.iter().position(|a| a == flag).and_then(|at| arguments.get(at + 1));
    let list = given.map_or(default, |list| list.as_str());
    let number = |part: &str| part.parse().map_err(|_| format!("{flag}: {part} is not a number"));
    list.split(',').map(number).collect()
}

/// Runs an example and says what is wrong with its arguments.
pub fn main(run: fn(&[String]) -> Result<(), String>) -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::from(2)
        }
    }
}
