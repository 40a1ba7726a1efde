//! docs/models.md, written from the registry and the goldens: `OFFSHOOT_WRITE_DOCS=1 cargo test -p
//! models documentation` writes it, otherwise it must be what would be written.

use std::fmt::Write;
use std::path::Path;

use models::registry::families;

use crate::folder::{cases, goldens, json};
use crate::goldens::{TOLERANCE, TOLERANCE_KL};

const HEAD: &str = "# Models

What Offshoot can run, and how each family is checked. This page is written from the registry of
families and from the goldens by `OFFSHOOT_WRITE_DOCS=1 cargo test -p models documentation`; a test
compares the two.

A MODEL is a folder in Hugging Face layout, as transformers 4 or 5 or as MLX's converters write it.
Experts may be stored one by one, stacked, or with gate and up fused. Weights may be floats (f32,
bf16, f16), MLX quantizations (affine 2 to 6 and 8 bits, mxfp4, mxfp8, nvfp4), block-scaled 8-bit
floats (`quant_method` fp8, widened to bf16 when they are loaded), and gpt-oss's mxfp4 blocks.
Tensors that a model does not run, such as a vision tower, are listed when it is loaded. Anything
else that is missing, superfluous or of a wrong shape is an error that names it.

";

const CHECKS: &str = "
## How they are checked
transformers 5.23.0 is the reference. A golden is a tiny model with every size different from every
other; its logits come from transformers in f32. Each is run whole, in chunks of 1, 3 and 7 tokens,
token by token, and, where the case has a second prompt, as two rows of different length in one
batch.";

fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

fn page() -> String {
    let mut page = HEAD.to_owned();
    page += "| family | published models | a sequence remembers | also named | goldens |\n";
    page += "|---|---|---|---|---|\n";
    for family in families() {
        let also = family.also.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>();
        let (name, n) = (family.model_type, cases(family.model_type).len());
        let (published, state) = (cell(family.published), family.state);
        writeln!(page, "| `{name}` | {published} | {state} | {} | {n} |", also.join(", ")).unwrap();
    }
    page += CHECKS;
    let f32s = format!("{TOLERANCE:e} of the largest logit and {TOLERANCE_KL:e} nats of KL");
    writeln!(page, " Bounds: {f32s} divergence.").unwrap();
    page += "\n`goldens/parity.py` does the same with models drawn anew, floats and quantized.\n";
    for family in families() {
        writeln!(page, "\n## {}\n", family.model_type).unwrap();
        for deviation in family.deviations {
            writeln!(page, "- Differs: {deviation}.").unwrap();
        }
        if !family.deviations.is_empty() {
            page.push('\n');
        }
        page += "| golden | shows |\n|---|---|\n";
        for case in cases(family.model_type) {
            row(&mut page, &case, "");
        }
        let prefix = format!("{}_", family.model_type);
        for case in cases("quantized") {
            let name = case.file_name().unwrap().to_string_lossy().into_owned();
            let longer = families().any(|f| {
                f.model_type.starts_with(&prefix) && name.starts_with(&format!("{}_", f.model_type))
            });
            if name.starts_with(&prefix) && !longer {
                row(&mut page, &case, "quantized/");
            }
        }
    }
    page
}

fn row(page: &mut String, case: &Path, prefix: &str) {
    let name = case.file_name().unwrap().to_string_lossy().into_owned();
    let why = json(&case.join("case.json"))["why"].as_str().unwrap().to_owned();
    writeln!(page, "| `{prefix}{name}` | {} |", cell(&why)).unwrap();
}

#[test]
fn the_page_of_models_is_what_registry_and_goldens_say() {
    let path = goldens().join("../docs/models.md");
    let wanted = page();
    if std::env::var_os("OFFSHOOT_WRITE_DOCS").is_some() {
        std::fs::write(&path, &wanted).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    let how = "run OFFSHOOT_WRITE_DOCS=1 cargo test -p models documentation";
    assert!(found == wanted, "docs/models.md is out of date: {how}");
}
