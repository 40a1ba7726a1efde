//! `offshoot ps`: what a server has loaded.

use clap::Args;
use clap::builder::BoolishValueParser;
use serde_json::Value;

use crate::failure::Result;
use crate::flags::ServerFlags;
use crate::output::{Output, bytes, table};
use crate::serving::Serving;

/// List the models that a server has loaded
#[derive(Debug, Args)]
pub struct Ps {
    /// Print a JSON array
    #[arg(long, env = "OFFSHOOT_JSON", value_parser = BoolishValueParser::new())]
    json: bool,
    #[command(flatten)]
    server: ServerFlags,
}

impl Ps {
    /// Runs the command.
    pub fn execute(self, out: &mut Output) -> Result<()> {
        let models = Serving::new(&self.server)?.get("/models")?["models"].take();
        if self.json {
            return out.line(&models.to_string());
        }
        let rows: Vec<_> = models.as_array().into_iter().flatten().map(row).collect();
        out.write(&table(&["MODEL", "STATE", "WEIGHTS", "REQUESTS", "STAYS", "DEVICE"], &rows))
    }
}

fn row(model: &Value) -> Vec<String> {
    let text = |key: &str| model[key].as_str().unwrap_or("-").to_owned();
    let stays = match model["expires_in_s"].as_f64() {
        Some(s) => format!("{s:.0} s"),
        None => "-".to_owned(),
    };
    vec![
        text("model"),
        text("state"),
        model["weight_bytes"].as_u64().map_or("-".to_owned(), bytes),
        model["n_requests"].to_string(),
        stays,
        text("device"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_model_that_loads_has_no_facts_yet() {
        let loading = json!({"model": "m", "state": "loading", "n_requests": 0});
        assert_eq!(row(&loading), ["m", "loading", "-", "0", "-", "-"]);
        let loaded = json!({"model": "m", "state": "loaded", "n_requests": 2, "device": "cpu",
                            "weight_bytes": 1500, "expires_in_s": 12.4});
        assert_eq!(row(&loaded), ["m", "loaded", "1.5 kB", "2", "12 s", "cpu"]);
    }
}
