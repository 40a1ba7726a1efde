//! What a MODEL argument means; a model that is not here can be pulled.

use std::io::{self, BufRead, IsTerminal, Write};

use hub::{DEFAULT_PARALLEL, Environment, Hub, HubError, Model, parse_reference};

use crate::downloads;
use crate::failure::{Failure, Result};
use crate::interrupts::Interrupts;

/// Finds a model. One that is not here and may be on the Hub is pulled, if someone is there to be
/// asked and says yes.
pub fn resolve(argument: &str, interrupts: &Interrupts) -> Result<Model> {
    let hub = Hub::of_user()?;
    let error = match hub.resolve(argument) {
        Ok(model) => return Ok(model),
        Err(error) => error,
    };
    let Some(question) = question(&error).filter(|_| can_ask()) else { return Err(error.into()) };
    if !ask(&question)? {
        return Err(error.into());
    }
    let (name, revision) = parse_reference(argument)?;
    downloads::pull(&hub, (&name, &revision), DEFAULT_PARALLEL, false, interrupts)?;
    Ok(hub.resolve(argument)?)
}

/// What to ask, where a pull may help.
fn question(error: &HubError) -> Option<String> {
    match error {
        HubError::UnknownModel { name, .. } if name.contains('/') => {
            Some(format!("{name} is not here. Pull it from the Hub?"))
        }
        HubError::Incomplete { name } => {
            Some(format!("The download of {name} is not complete. Go on with it?"))
        }
        _ => None,
    }
    .filter(|_| !Environment::is_offline_process())
}

/// Whether someone reads questions and types answers.
pub fn can_ask() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Asks a question that only `y` and `yes` agree to.
pub fn ask(question: &str) -> Result<bool> {
    let failed = |e: io::Error| Failure::new(format!("cannot ask: {e}"));
    let mut stderr = io::stderr();
    write!(stderr, "{question} [y/N] ").and_then(|()| stderr.flush()).map_err(failed)?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).map_err(failed)?;
    Ok(["y", "yes"].contains(&answer.trim().to_lowercase().as_str()))
}
