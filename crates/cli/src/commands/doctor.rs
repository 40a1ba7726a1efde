//! `offshoot doctor`: what this installation has, what is wrong with it, and what fixes that.

use std::path::Path;

use clap::Args;
use clap::builder::BoolishValueParser;
use hub::{DEMO, Hub, HubError};
use protocol::DeviceInfo;
use serde_json::{Value, json};
use server::backend::{Chosen, Library, mlx_version};
use server::supervisor::{Runner, RunnerError, RunnerProgram, find_runner};

use crate::failure::{Failure, Message, Result};
use crate::flags::BackendFlags;
use crate::output::{Output, bytes};
use crate::session::{BUILD, choose_backend};

/// Check this installation and say how to fix what is wrong
#[derive(Debug, Args)]
pub struct Doctor {
    /// Print a JSON object
    #[arg(long, env = "OFFSHOOT_JSON", value_parser = BoolishValueParser::new())]
    json: bool,
    #[command(flatten)]
    backend: BackendFlags,
}

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    Ok,
    /// Works, but could be better.
    Warning,
    Problem,
}

struct Check {
    name: &'static str,
    status: Status,
    detail: String,
    fix: Option<String>,
}

impl Doctor {
    /// Runs the command; fails when there is a problem.
    pub fn execute(self, out: &mut Output) -> Result<()> {
        let checks = self.checks();
        let n_problems = checks.iter().filter(|check| check.status == Status::Problem).count();
        if self.json {
            let checks: Vec<_> = checks.iter().map(Check::object).collect();
            let ok = n_problems == 0;
            out.line(&json!({ "version": BUILD, "ok": ok, "checks": checks }).to_string())?;
        } else {
            for check in &checks {
                out.write(&check.lines())?;
            }
        }
        match n_problems {
            0 => Ok(()),
            1 => Err(Failure::new("1 problem was found")),
            n => Err(Failure::new(format!("{n} problems were found"))),
        }
    }

    fn checks(&self) -> Vec<Check> {
        let mut checks = Vec::new();
        let chosen = choose_backend(&self.backend);
        match &chosen {
            Ok(chosen) => checks.extend(backend(chosen)),
            Err(failure) => checks.push(of_failure("backend", failure)),
        }
        let path = find_runner();
        match (&path, &chosen) {
            (Ok(path), Ok(chosen)) => {
                let program = RunnerProgram { path: path.clone(), env: chosen.env.clone() };
                checks.extend(runner(&program));
            }
            (Ok(path), Err(_)) => checks.push(ok("runner", path.display().to_string())),
            (Err(error), _) => checks.push(of_runner_error("runner", error)),
        }
        checks.push(data_dir());
        checks.push(demo());
        checks
    }
}

fn ok(name: &'static str, detail: String) -> Check {
    Check { name, status: Status::Ok, detail, fix: None }
}

fn problem(name: &'static str, detail: String, fix: Option<String>) -> Check {
    Check { name, status: Status::Problem, detail, fix }
}

fn of_failure(name: &'static str, failure: &Failure) -> Check {
    match failure {
        Failure::Usage(Message { error, hint }) | Failure::Failed(Message { error, hint }) => {
            problem(name, error.clone(), hint.clone())
        }
        Failure::Interrupted | Failure::StdoutClosed => problem(name, "stopped".into(), None),
    }
}

fn of_runner_error(name: &'static str, error: &RunnerError) -> Check {
    problem(name, error.to_string(), error.hint())
}

fn of_hub_error(name: &'static str, error: &HubError) -> Check {
    problem(name, error.to_string(), error.hint())
}

fn backend(chosen: &Chosen) -> [Check; 2] {
    let status = if chosen.hint.is_some() { Status::Warning } else { Status::Ok };
    let detail = format!("{}, because {}", chosen.backend, chosen.reason);
    let library = match &chosen.library {
        Library::Folder(folder) => folder.display().to_string(),
        Library::OnSearchPath(folder) => format!("{} (on the search path)", folder.display()),
        Library::RunnersOwn => format!("{} as the runner was built with", mlx_version()),
    };
    [
        Check { name: "backend", status, detail, fix: chosen.hint.clone() },
        ok("MLX library", library),
    ]
}

/// Starts it, greets it and asks what device it drives.
fn runner(program: &RunnerProgram) -> Vec<Check> {
    let mut runner = match Runner::spawn(program, BUILD) {
        Ok(runner) => runner,
        Err(error) => return vec![of_runner_error("runner", &error)],
    };
    let greeted = match runner.greet() {
        Ok(build) => ok("runner", format!("{}, build {build}", program.path.display())),
        Err(error) => return vec![of_runner_error("runner", &error)],
    };
    let device = match runner.probe() {
        Ok(device) => self::device(&device),
        Err(error) => of_runner_error("device", &error),
    };
    vec![greeted, device]
}

fn device(device: &DeviceInfo) -> Check {
    let memory = device.memory_bytes.map(|n| format!(", {} of memory", bytes(n)));
    let memory = memory.unwrap_or_default();
    let DeviceInfo { backend, device, mlx_version: version, .. } = device;
    ok("device", format!("{device} ({backend}){memory}, MLX {version}"))
}

fn data_dir() -> Check {
    const NAME: &str = "data folder";
    let dir = match hub::data_dir() {
        Ok(dir) => dir,
        Err(error) => return of_hub_error(NAME, &error),
    };
    // It is made when something is first kept in it; until then its parent has to be writable.
    let existing = dir.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("."));
    match tempfile::NamedTempFile::new_in(existing) {
        Ok(_) => ok(NAME, dir.display().to_string()),
        Err(e) => {
            let fix = "make it writable, or set OFFSHOOT_HOME to another folder".to_owned();
            problem(NAME, format!("{} is not writable: {e}", dir.display()), Some(fix))
        }
    }
}

fn demo() -> Check {
    const NAME: &str = "demo model";
    let resolved = Hub::of_user().and_then(|hub| hub.resolve(DEMO));
    match resolved {
        Ok(hub::Model::Folder { folder, .. }) => match folder.tokenizer() {
            Ok(_) => ok(NAME, folder.path().display().to_string()),
            Err(error) => of_hub_error(NAME, &error),
        },
        Ok(hub::Model::Shape(_)) => problem(NAME, "it is no folder".into(), None),
        Err(error) => of_hub_error(NAME, &error),
    }
}

impl Status {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Problem => "problem",
        }
    }
}

impl Check {
    fn object(&self) -> Value {
        json!({
            "name": self.name,
            "status": self.status.as_str(),
            "detail": self.detail,
            "fix": self.fix,
        })
    }

    fn lines(&self) -> String {
        let Self { name, status, detail, fix } = self;
        let fix = fix.as_ref().map(|fix| format!("{:<9}{:<13}fix: {fix}\n", "", ""));
        format!("{:<9}{name:<13}{detail}\n{}", status.as_str(), fix.unwrap_or_default())
    }
}
