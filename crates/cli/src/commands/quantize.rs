//! `offshoot quantize`: a model with its matrices in codes, or in floats of another kind.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::builder::BoolishValueParser;
use clap::{Args, ValueEnum};
use hub::Model;
use protocol::{
    Coding, CodingMode, Command, Event, FinishReason, FloatType, InvalidField, QuantizeReport,
    QuantizeRequest, QuantizeTarget,
};
use serde_json::{Value, json};

use crate::failure::{Failure, Result};
use crate::flags::BackendFlags;
use crate::interrupts::Interrupts;
use crate::model::resolve;
use crate::output::{Output, bytes, say, table};
use crate::remaining::{Remaining, clock};
use crate::session::Worker;

/// Write a model with its weights quantized, in the layout of MLX tools
#[derive(Debug, Args)]
pub struct Quantize {
    /// Folder in Hugging Face layout, or a name from `offshoot list`
    source: String,
    /// The folder to make; it appears when it is complete
    target: PathBuf,
    /// Bits of a weight: 2, 3, 4, 5, 6 or 8 (affine)
    #[arg(long, env = "OFFSHOOT_BITS", value_name = "N")]
    bits: Option<u32>,
    /// Weights that share a scale: 32, 64 or 128 (affine)
    #[arg(long, env = "OFFSHOOT_GROUP_SIZE", value_name = "N")]
    group_size: Option<u32>,
    /// Coding: affine, mxfp4, mxfp8, nvfp4; or bf16, f16, f32 for floats
    #[arg(long, env = "OFFSHOOT_MODE", default_value = "affine", value_name = "NAME")]
    mode: String,
    /// How bits are spread; a mixed recipe gives v, down and head projections the second number
    #[arg(long, env = "OFFSHOOT_RECIPE", value_enum, default_value = "default")]
    recipe: Recipe,
    /// Leave these matrices in floats: parts of a path such as lm_head or layers.0.mlp; `*` is
    /// anything within a part
    #[arg(long, value_name = "PATTERN")]
    keep: Vec<String>,
    /// Code these matrices differently; the last pattern that matches counts
    #[arg(long, value_name = "PATTERN=BITS[:GROUP[:MODE]]")]
    at: Vec<String>,
    /// Type of floats and scales: bf16, f16 or f32 (without it: the model's own)
    #[arg(long, env = "OFFSHOOT_DTYPE", value_name = "NAME")]
    dtype: Option<String>,
    /// Replace the model at the target
    #[arg(long)]
    overwrite: bool,
    /// Print the report as a JSON object
    #[arg(long, env = "OFFSHOOT_JSON", value_parser = BoolishValueParser::new())]
    json: bool,
    #[command(flatten)]
    backend: BackendFlags,
}

/// The spread of bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Recipe {
    Default,
    #[value(name = "mixed_2_6")]
    Mixed2To6,
    #[value(name = "mixed_3_4")]
    Mixed3To4,
    #[value(name = "mixed_3_6")]
    Mixed3To6,
    #[value(name = "mixed_4_6")]
    Mixed4To6,
}

impl Recipe {
    /// Bits of most matrices and of some.
    fn low_and_high(self) -> Option<(u32, u32)> {
        match self {
            Recipe::Default => None,
            Recipe::Mixed2To6 => Some((2, 6)),
            Recipe::Mixed3To4 => Some((3, 4)),
            Recipe::Mixed3To6 => Some((3, 6)),
            Recipe::Mixed4To6 => Some((4, 6)),
        }
    }
}

/// How far the run had come.
#[derive(Debug, Clone, Copy, Default)]
struct Reached {
    done_shards: u32,
    n_shards: u32,
}

impl Quantize {
    /// Runs the command.
    pub fn execute(self, out: &mut Output, interrupts: &Interrupts) -> Result<()> {
        let start = Instant::now();
        let (mut request, source_name) = self.request(interrupts)?;
        let mut worker = Worker::start(&self.backend, interrupts)?;
        request.id = worker.next_id();
        let (mut report, mut reached) = (None, Reached::default());
        let mut remaining = Remaining::new();
        let id = request.id;
        let ending = worker.request(id, &Command::Quantize(request), &mut |event| {
            match event {
                Event::QuantizeReport(made) => report = Some(made),
                Event::QuantizeProgress(p) => {
                    reached = Reached { done_shards: p.done_shards, n_shards: p.n_shards };
                    remaining.update(p.done_bytes, p.total_bytes);
                }
                _ => {}
            }
            Ok(())
        });
        drop(remaining);
        let ending = match ending {
            Ok(ending) => ending,
            Err(Failure::Interrupted) => return Err(stopped(reached)),
            Err(failure) if reached.done_shards > 0 => {
                return Err(failure.with_hint(
                    "what is finished is kept unless the model itself is at fault: the same \
                     command goes on from there",
                ));
            }
            Err(failure) => return Err(failure),
        };
        match (ending.reason, report) {
            (FinishReason::Cancelled, _) => Err(stopped(reached)),
            (_, None) => Err(Failure::new("the runner ended the work without a report")),
            (_, Some(report)) => {
                let elapsed = start.elapsed();
                match self.json {
                    true => out.line(&self.object(&source_name, &report, elapsed).to_string()),
                    false => self.print(out, &report, elapsed),
                }
            }
        }
    }

    /// The request, without its name, and the source as it is shown.
    fn request(&self, interrupts: &Interrupts) -> Result<(QuantizeRequest, String)> {
        let coding = self.coding()?;
        let model = resolve(&self.source, interrupts)?;
        let Model::Folder { folder, .. } = &model else {
            return Err(Failure::usage("a shape has random weights: there is nothing to quantize")
                .with_hint("name a folder, or a model from `offshoot list`"));
        };
        let dtype = self.dtype.as_ref().map(|name| name.parse::<FloatType>());
        let dtype = dtype.transpose().map_err(|e| Failure::usage(format!("--dtype {e}")))?;
        let request = QuantizeRequest {
            id: protocol::RequestId(0),
            source: utf8(folder.path())?,
            target: utf8(&absolute(&self.target)?)?,
            coding,
            high_bits: self.recipe.low_and_high().map(|(_, high)| high),
            keep: self.keep.clone(),
            at: self.at.iter().map(|text| own_coding(text, coding)).collect::<Result<_>>()?,
            dtype,
            overwrites: self.overwrite,
        };
        request.validate().map_err(flag_error)?;
        Ok((request, model.name()))
    }

    /// `--mode`, `--bits`, `--group-size` and the low bits of `--recipe`.
    fn coding(&self) -> Result<QuantizeTarget> {
        if let Ok(dtype) = self.mode.parse::<FloatType>() {
            let numbers = [("bits", self.bits), ("group-size", self.group_size)];
            if let Some((name, _)) = numbers.iter().find(|(_, given)| given.is_some()) {
                let error = format!("--{name} has no meaning with --mode {dtype}");
                return Err(Failure::usage(error));
            }
            return Ok(QuantizeTarget::Floats(dtype));
        }
        let mode = self.mode.parse::<CodingMode>().map_err(|_| {
            let error = format!(
                "--mode '{}' is none of affine, mxfp4, mxfp8, nvfp4, bf16, f16, f32",
                self.mode
            );
            Failure::usage(error)
        })?;
        let usual = mode.usual();
        let bits = match (self.bits, self.recipe.low_and_high()) {
            (Some(_), Some(_)) => {
                let error = "--bits and a mixed --recipe contradict each other";
                return Err(Failure::usage(error).with_hint("the recipe's name says the bits"));
            }
            (Some(bits), None) => bits,
            (None, Some((low, _))) if mode == CodingMode::Affine => low,
            (None, _) => usual.bits,
        };
        let group_size = self.group_size.unwrap_or(usual.group_size);
        Ok(QuantizeTarget::Codes(Coding { mode, bits, group_size }))
    }

    fn object(&self, source: &str, report: &QuantizeReport, elapsed: Duration) -> Value {
        let roles = report.roles.iter().map(|role| {
            json!({
                "role": role.role,
                "n_tensors": role.n_tensors,
                "n_weights": role.n_weights,
                "n_bytes": role.n_bytes,
                "bits_per_weight": role.bits_per_weight,
                "relative_rms_error": role.relative_rms_error,
            })
        });
        let float = |(path, reason): &(String, String)| json!({ "path": path, "reason": reason });
        json!({
            "source": source,
            "target": self.target.to_string_lossy(),
            "family": report.family,
            "coding": report.coding,
            "n_weights": report.n_weights,
            "bits_per_weight": report.bits_per_weight,
            "source_bytes": report.source_bytes,
            "target_bytes": report.target_bytes,
            "n_files": report.n_shards,
            "n_resumed_files": report.n_resumed_shards,
            "elapsed_s": elapsed.as_secs_f64(),
            "roles": roles.collect::<Vec<_>>(),
            "floats": report.floats.iter().map(float).collect::<Vec<_>>(),
            "notes": report.notes,
        })
    }

    fn print(&self, out: &mut Output, report: &QuantizeReport, elapsed: Duration) -> Result<()> {
        let rows = report.roles.iter().map(|role| {
            vec![
                role.role.replace('_', " "),
                role.n_tensors.to_string(),
                count(role.n_weights),
                format!("{:.2}", role.bits_per_weight),
                format!("{:.3} %", role.relative_rms_error * 100.0),
            ]
        });
        let header = ["ROLE", "TENSORS", "WEIGHTS", "BITS", "ERROR"];
        out.write(&table(&header, &rows.collect::<Vec<_>>()))?;
        out.line(&format!(
            "{}: {} weights at {:.2} bits, {} -> {} in {} file{} ({})",
            self.target.display(),
            count(report.n_weights),
            report.bits_per_weight,
            bytes(report.source_bytes),
            bytes(report.target_bytes),
            report.n_shards,
            if report.n_shards == 1 { "" } else { "s" },
            clock(elapsed)
        ))?;
        if report.n_resumed_shards > 0 {
            say(&format!("{} of them were there already", report.n_resumed_shards));
        }
        for (reason, paths) in by_reason(&report.floats) {
            say(&format!("in floats, because {reason}: {paths}"));
        }
        report.notes.iter().for_each(|note| say(note));
        Ok(())
    }
}

/// What is said after Ctrl-C. The exit code is that of an interruption.
fn stopped(reached: Reached) -> Failure {
    let Reached { done_shards, n_shards } = reached;
    say(&match done_shards {
        0 => "stopped; no file was finished, so nothing is kept".to_owned(),
        _ => format!(
            "stopped; {done_shards} of {n_shards} files are finished and kept: the same command \
             goes on from there"
        ),
    });
    Failure::Interrupted
}

/// Reasons with the paths that they hold for, the first few by name.
fn by_reason(floats: &[(String, String)]) -> Vec<(String, String)> {
    const N_NAMED: usize = 3;
    let mut reasons = Vec::<(String, Vec<&str>)>::new();
    for (path, reason) in floats {
        match reasons.iter_mut().find(|(known, _)| known == reason) {
            Some((_, paths)) => paths.push(path),
            None => reasons.push((reason.clone(), vec![path])),
        }
    }
    let shown = |paths: &[&str]| {
        let named = paths.iter().take(N_NAMED).copied().collect::<Vec<_>>().join(", ");
        match paths.len().saturating_sub(N_NAMED) {
            0 => named,
            n_more => format!("{named} and {n_more} more"),
        }
    };
    reasons.into_iter().map(|(reason, paths)| (reason, shown(&paths))).collect()
}

/// `PATTERN=BITS[:GROUP[:MODE]]`. Without a mode it is affine, as config.json has it; without a
/// group it has the command's if that is affine, too, else the mode's usual one.
fn own_coding(text: &str, default: QuantizeTarget) -> Result<(String, Coding)> {
    let wrong = |reason: String| {
        Failure::usage(format!("--at {text}: {reason}"))
            .with_hint("write it as lm_head=8, v_proj=6:32 or mlp=4:32:mxfp4")
    };
    let (pattern, coding) =
        text.split_once('=').ok_or_else(|| wrong("there is no '='".to_owned()))?;
    let mut parts = coding.split(':');
    let bits = parts.next().unwrap_or_default();
    let (group, mode) = (parts.next(), parts.next());
    if parts.next().is_some() {
        return Err(wrong("there are too many parts".to_owned()));
    }
    let number = |name: &str, text: &str| {
        text.parse::<u32>().map_err(|_| wrong(format!("{name} '{text}' is no number")))
    };
    let mode = match mode {
        Some(name) => name.parse::<CodingMode>().map_err(|e| wrong(format!("mode {e}")))?,
        None => CodingMode::Affine,
    };
    let group_size = match (group, default) {
        (Some(group), _) => number("the group", group)?,
        (None, QuantizeTarget::Codes(default)) if default.mode == mode => default.group_size,
        (None, _) => mode.usual().group_size,
    };
    let coding = Coding { mode, bits: number("the number of bits", bits)?, group_size };
    coding.validate().map_err(|e| wrong(e.to_string()))?;
    Ok((pattern.to_owned(), coding))
}

fn flag_error(error: InvalidField) -> Failure {
    Failure::usage(format!("--{} {}", error.field.replace('_', "-"), error.reason))
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path)
        .map_err(|e| Failure::usage(format!("the target {}: {e}", path.display())))
}

fn utf8(path: &Path) -> Result<String> {
    let text = path.to_str().ok_or_else(|| {
        Failure::new(format!("{} is not UTF-8", path.display())).with_hint("rename the folder")
    });
    text.map(str::to_owned)
}

/// Numbers of weights as people read them.
fn count(n: u64) -> String {
    match n {
        0..1_000 => n.to_string(),
        1_000..1_000_000 => format!("{:.1} k", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} M", n as f64 / 1e6),
        _ => format!("{:.2} G", n as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(text: &str, default: Coding) -> Coding {
        let (pattern, coding) = own_coding(text, QuantizeTarget::Codes(default)).unwrap();
        assert_eq!(pattern, "lm_head");
        coding
    }

    #[test]
    fn a_coding_of_its_own_fills_what_it_leaves_out() {
        let affine = Coding { group_size: 32, ..CodingMode::Affine.usual() };
        let mxfp4 = CodingMode::Mxfp4.usual();
        let with = |bits, group_size| Coding { bits, group_size, ..affine };
        assert_eq!(own("lm_head=8", affine), with(8, 32));
        assert_eq!(own("lm_head=8", mxfp4), with(8, 64));
        assert_eq!(own("lm_head=6:128", mxfp4), with(6, 128));
        assert_eq!(own("lm_head=4:32:mxfp4", affine), mxfp4);
    }

    #[test]
    fn reasons_are_said_once() {
        let float = |path: &str, reason: &str| (path.to_owned(), reason.to_owned());
        let floats =
            [float("a", "x"), float("b", "y"), float("c", "x"), float("d", "x"), float("e", "x")];
        let said = by_reason(&floats);
        assert_eq!(said, [float("x", "a, c, d and 1 more"), float("y", "b")]);
    }

    #[test]
    fn counts_are_short() {
        for (n, text) in [(0, "0"), (1500, "1.5 k"), (2_000_000, "2.0 M"), (3 << 30, "3.22 G")] {
            assert_eq!(count(n), text);
        }
    }
}
