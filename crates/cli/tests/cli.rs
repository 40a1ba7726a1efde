//! The executable as users meet it, with the scripted runner behind it.

#![allow(clippy::unwrap_used, reason = "a test's helpers may panic")]

mod store;

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
#[cfg(unix)]
use std::{sync::mpsc, thread, time::Duration};

use serde_json::{Value, json};
use testkit::{LoadScript, PROGRAM_VAR, Program, QuantizeScript, Script};

/// Words of the test model, by token id.
const WORDS: [&str; 8] = ["end", "one", "two", "three", "hi", "<think>", "</think>", "system"];

/// A weight file without tensors: the length of its header, and the header.
const NO_TENSORS: &[u8] = b"\x02\0\0\0\0\0\0\0{}";

/// A home with one model in its store, and a way to run the executable in it.
struct Home {
    dir: tempfile::TempDir,
}

/// What a finished run left.
#[derive(Debug)]
struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

/// Cargo builds a package's examples together with its tests.
fn scripted_runner() -> PathBuf {
    let offshoot = Path::new(env!("CARGO_BIN_EXE_offshoot"));
    let name = format!("cli_scripted_runner{}", env::consts::EXE_SUFFIX);
    let path = offshoot.parent().unwrap().join("examples").join(name);
    assert!(path.is_file(), "build it first: cargo test -p cli");
    path
}

impl Home {
    fn new() -> Self {
        let home = Self { dir: tempfile::tempdir().unwrap() };
        home.write("config.json", &json!({"model_type": "scripted", "num_hidden_layers": 2}));
        home.write("tokenizer.json", &tokenizer());
        let template = "{% for m in messages %}{{ m.content }} {% endfor %}\
                        {% if enable_thinking %}<think>{% endif %}";
        home.write(
            "tokenizer_config.json",
            &json!({"eos_token": "end", "chat_template": template}),
        );
        fs::write(home.model().join("model.safetensors"), NO_TENSORS).unwrap();
        home
    }

    fn model(&self) -> PathBuf {
        self.dir.path().join("models/tiny")
    }

    fn write(&self, name: &str, content: &Value) {
        fs::create_dir_all(self.model()).unwrap();
        fs::write(self.model().join(name), content.to_string()).unwrap();
    }

    fn command(&self, program: &Program, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_offshoot"));
        let foreign = ["OFFSHOOT_", "HF_", "HUGGING"];
        for (name, _) in env::vars_os() {
            if foreign.iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
                command.env_remove(name);
            }
        }
        command
            .args(args)
            .env("OFFSHOOT_HOME", self.dir.path())
            .env("HF_HOME", self.dir.path().join("hf"))
            // Nothing listens there: only tests that name a Hub of their own may find one.
            .env("HF_ENDPOINT", "http://127.0.0.1:9")
            .env("OFFSHOOT_RUNNER", scripted_runner())
            .env("OFFSHOOT_BACKEND", "cpu")
            .env(PROGRAM_VAR, program.to_env())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn run_program(&self, program: &Program, args: &[&str]) -> Ran {
        finish(self.command(program, args).spawn().unwrap())
    }

    fn run(&self, script: Script, args: &[&str]) -> Ran {
        self.run_program(&Program::Serve(script), args)
    }

    fn run_with_stdin(&self, stdin: &[u8], args: &[&str]) -> Ran {
        let mut command = self.command(&Program::Serve(Script::default()), args);
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        let mut pipe = child.stdin.take().unwrap();
        // A program that refuses its arguments does not read.
        let _ = pipe.write_all(stdin);
        drop(pipe);
        finish(child)
    }
}

fn finish(child: Child) -> Ran {
    let output = child.wait_with_output().unwrap();
    Ran {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Splits at blanks and knows [`WORDS`].
fn tokenizer() -> Value {
    let vocab: serde_json::Map<String, Value> =
        WORDS.iter().zip(0..).map(|(word, id)| ((*word).to_owned(), Value::from(id))).collect();
    let added = |id: u32, special: bool| {
        json!({"id": id, "content": WORDS[id as usize], "single_word": false, "lstrip": false,
               "rstrip": false, "normalized": false, "special": special})
    };
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": [added(0, true), added(5, false), added(6, false)],
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "end"}
    })
}

fn answering(answer: &[u32]) -> Script {
    Script { answer: answer.to_vec(), ..Script::default() }
}

impl Ran {
    /// The exit code and all that the error says.
    #[track_caller]
    fn fails(&self, code: i32, says: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert!(self.stdout.is_empty(), "{self:?}");
        for text in says {
            assert!(self.stderr.contains(text), "no {text:?} in {self:?}");
        }
    }

    #[track_caller]
    fn prints(&self, stdout: &str) {
        assert_eq!((self.code, self.stdout.as_str()), (Some(0), stdout), "{self:?}");
    }
}

#[test]
fn one_shot_streams_text_and_nothing_else() {
    let ran = Home::new().run(answering(&[1, 2, 0, 3]), &["run", "tiny", "hi"]);
    ran.prints("one two\n");
    assert_eq!(ran.stderr, "");
}

#[test]
fn a_prompt_comes_from_the_argument_and_from_a_pipe() {
    let home = Home::new();
    let prompt_tokens = |stdin: &[u8], args: &[&str]| {
        let ran = home.run_with_stdin(stdin, args);
        let object: Value = serde_json::from_str(&ran.stdout).unwrap();
        object["usage"]["prompt_tokens"].clone()
    };
    assert_eq!(prompt_tokens(b"hi hi\n", &["run", "tiny", "--json"]), 2);
    assert_eq!(prompt_tokens(b"hi hi\n", &["run", "tiny", "one", "--json"]), 3);
    assert_eq!(prompt_tokens(b"", &["run", "tiny", "one", "--json"]), 1);
    let args = ["run", "tiny", "one", "--system", "system", "--json"];
    assert_eq!(prompt_tokens(b"", &args), 2);
    home.run_with_stdin(b" \n", &["run", "tiny"]).fails(2, &["the prompt is empty", "hint:"]);
    home.run_with_stdin(b"\xff", &["run", "tiny"]).fails(1, &["not UTF-8"]);
}

#[test]
fn json_is_one_stable_object() {
    let script = Script { answer: vec![5, 1, 6, 2, 0], ..Script::default() };
    let ran = Home::new().run(script, &["run", "tiny", "hi", "--json", "--seed", "7"]);
    let mut object: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert!(object["timings"]["load_ms"].as_f64().unwrap() > 0.0);
    object["timings"]["load_ms"] = Value::Null;
    let expected = json!({
        "model": "tiny", "text": "two", "thinking": "one", "finish_reason": "stop", "seed": 7,
        "usage": {"prompt_tokens": 1, "cached_tokens": 0, "new_tokens": 5},
        "timings": {"load_ms": null, "queue_ms": 0.0, "prefill_ms": 0.0, "decode_ms": 0.0},
    });
    // As text: the order of the keys is part of the promise.
    assert_eq!(object.to_string(), expected.to_string());
}

#[test]
fn max_tokens_ends_an_answer() {
    let args = ["run", "tiny", "hi", "--json", "--max-tokens", "2"];
    let ran = Home::new().run(Script { endless: true, ..Script::default() }, &args);
    let object: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((&object["finish_reason"], &object["text"]), (&json!("length"), &json!("one two")));
}

#[test]
fn thinking_stays_out_of_a_pipe_unless_asked_for() {
    let home = Home::new();
    let answer = || answering(&[5, 1, 6, 2, 0]);
    home.run(answer(), &["run", "tiny", "hi"]).prints("two\n");
    let opened = answering(&[1, 6, 2, 0]);
    let shown = home.run(opened.clone(), &["run", "tiny", "hi", "--think"]);
    shown.prints("<think>\none\n</think>\n\ntwo\n");
    home.run(answer(), &["run", "tiny", "hi", "--think", "--no-think"]).prints("two\n");
}

#[test]
fn verbose_prints_one_line_of_talk() {
    let ran = Home::new().run(Script::default(), &["run", "tiny", "hi", "--verbose"]);
    ran.prints("one two three\n");
    assert!(ran.stderr.starts_with("prompt 1 tokens (0 cached), new 3 tokens"), "{ran:?}");
    assert_eq!(ran.stderr.lines().count(), 1, "{ran:?}");
}

#[test]
fn models_that_cannot_be_loaded_say_why() {
    let home = Home::new();
    let run = |model: &str| home.run(Script::default(), &["run", model, "hi"]);
    let path = |name: &str| home.dir.path().join(name).to_str().unwrap().to_owned();
    run("tinny").fails(1, &["there is no model \"tinny\"", "did you mean \"tiny\"?"]);
    run("no such model").fails(2, &["is not a model name", "offshoot run demo PROMPT"]);
    run("../x/../y").fails(1, &["there is no folder"]);
    run(&path("absent")).fails(1, &["there is no folder"]);
    fs::create_dir(path("empty")).unwrap();
    run(&path("empty")).fails(1, &["the folder is empty", "config.json, *.safetensors"]);
    run(&path("models/tiny/config.json")).fails(1, &["is a file", "did you mean"]);
    run("shape:qwen3-8b:4bit").fails(2, &["a shape has random weights"]);
    fs::remove_file(home.model().join("tokenizer.json")).unwrap();
    run("tiny").fails(1, &["tokenizer.json is missing", "hint:"]);
}

#[test]
fn a_model_without_a_template_can_be_continued_raw() {
    let home = Home::new();
    home.write("tokenizer_config.json", &json!({"eos_token": "end"}));
    let ran = home.run(Script::default(), &["run", "tiny", "hi"]);
    ran.fails(1, &["no chat template", "--raw"]);
    home.run(Script::default(), &["run", "tiny", "hi", "--raw"]).prints("one two three\n");
    let both = ["run", "tiny", "hi", "--raw", "--system", "x"];
    home.run(Script::default(), &both).fails(2, &["--raw", "--system"]);
}

#[test]
fn bad_flags_are_usage_errors_that_name_the_flag() {
    let home = Home::new();
    let cases: [(&[&str], &str); 10] = [
        (&["--temperature", "-1"], "--temperature must be at least 0"),
        (&["--top-p", "nan"], "--top-p must be above 0"),
        (&["--max-tokens", "0"], "--max-tokens"),
        (&["--max-tokens", "-1"], "invalid value '-1' for '--max-tokens <N>'"),
        (&["--seed", "-1"], "invalid value '-1' for '--seed <N>'"),
        (&["--top-k", "-1"], "invalid value '-1' for '--top-k <K>'"),
        (&["--backend", "rocm"], "auto, cpu, cuda or metal"),
        (&["--threads", "0"], "invalid value '0' for '--threads <N>'"),
        (&["--repetition-penalty", "0"], "--repetition-penalty must be above 0"),
        (&["--frobnicate"], "--frobnicate"),
    ];
    for (flags, says) in cases {
        let args: Vec<_> = ["run", "tiny", "hi"].iter().chain(flags).copied().collect();
        home.run(Script::default(), &args).fails(2, &[says]);
    }
}

#[test]
fn variables_of_switches_take_the_usual_words_for_yes_and_no() {
    let home = Home::new();
    let program = Program::Serve(Script::default());
    let ran = |value: &str| {
        let mut command = home.command(&program, &["run", "tiny", "hi"]);
        finish(command.env("OFFSHOOT_JSON", value).spawn().unwrap())
    };
    let is_json = |value: &str| ran(value).stdout.starts_with('{');
    for (value, on) in [("1", true), ("true", true), ("yes", true), ("0", false), ("no", false)] {
        assert_eq!(is_json(value), on, "{value}");
    }
    ran("perhaps").fails(2, &["perhaps", "--json"]);
}

#[test]
fn a_prompt_over_the_context_shows_both_numbers() {
    let script = Script { context_tokens: 3, ..Script::default() };
    let ran = Home::new().run(script, &["run", "tiny", "hi hi hi hi hi"]);
    ran.fails(1, &["5 tokens", "context is 3 tokens"]);
}

#[test]
fn a_closed_stdout_is_success() {
    let home = Home::new();
    let endless =
        Program::Serve(Script { endless: true, context_tokens: 1 << 30, ..Script::default() });
    let mut child = home.command(&endless, &["run", "tiny", "hi"]).spawn().unwrap();
    let mut some = [0; 16];
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut some).unwrap();
    drop(stdout);
    let ran = finish(child);
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
}

#[test]
fn a_runner_that_dies_mid_answer_is_reported() {
    let dies = Script { abort_after_tokens: Some(2), ..Script::default() };
    let ran = Home::new().run(dies, &["run", "tiny", "hi"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(1), "one two\n"), "{ran:?}");
    let says = ["error: the runner has ended unexpectedly", "| scripted: the device is lost"];
    assert!(says.iter().all(|text| ran.stderr.contains(text)), "{ran:?}");
}

#[test]
fn runners_that_do_not_fit_are_reported() {
    let home = Home::new();
    let run = |program: &Program| home.run_program(program, &["run", "tiny", "hi"]);
    run(&Program::OtherVersion).fails(1, &["does not fit", "same build"]);
    run(&Program::Stranger).fails(1, &["not an offshoot program"]);
    run(&Program::ExitsAtOnce("no libmlx".into(), 127)).fails(1, &["127", "| no libmlx"]);
    run(&Program::TalksNonsense).fails(1, &["does not keep to the protocol"]);
    let load = LoadScript::Fails("tensor x is missing".into());
    let failed = home.run(Script { load, ..Script::default() }, &["run", "tiny", "hi"]);
    failed.fails(1, &["error: tensor x is missing"]);
    let mut missing = home.command(&Program::OtherVersion, &["run", "tiny", "hi"]);
    let ran = finish(missing.env("OFFSHOOT_RUNNER", "no/such/runner").spawn().unwrap());
    ran.fails(1, &["offshoot-runner is missing", "hint:"]);
}

#[test]
fn list_and_show_tell_what_there_is() {
    let home = Home::new();
    let ran = home.run(Script::default(), &["list"]);
    assert!(ran.stdout.starts_with("NAME"), "{ran:?}");
    assert!(ran.stdout.contains("tiny  scripted  "), "{ran:?}");
    let ran = home.run(Script::default(), &["list", "--json"]);
    let list: Value = serde_json::from_str(&ran.stdout).unwrap();
    let tiny = list.as_array().unwrap().iter().find(|entry| entry["name"] == "tiny").unwrap();
    assert_eq!((&tiny["family"], &tiny["problem"]), (&json!("scripted"), &Value::Null));
    let ran = home.run(Script::default(), &["show", "tiny", "--json"]);
    let object: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((&object["n_layers"], &object["has_chat_template"]), (&json!(2), &json!(true)));
    let ran = home.run(Script::default(), &["show", "tiny"]);
    assert!(ran.stdout.contains("tokenizer           yes"), "{ran:?}");
}

#[test]
fn bench_prints_one_object_per_batch_size() {
    let home = Home::new();
    let args = ["bench", "shape:any:4bit", "-p", "8", "-n", "8", "-b", "1,4", "--json"];
    let ran = home.run(Script::default(), &args);
    let objects: Vec<Value> =
        ran.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let batches: Vec<_> = objects.iter().map(|object| &object["batch"]).collect();
    assert_eq!(batches, [&json!(1), &json!(4)]);
    let object = &objects[1];
    assert_eq!((&object["decode_tok_s"], &object["bound_share"]), (&json!(400.0), &Value::Null));
    let text = home.run(Script::default(), &args[..args.len() - 1]);
    assert!(text.stdout.lines().nth(2).unwrap().contains("400.0"), "{text:?}");
    let layers = ["bench", "tiny", "--layers", "2"];
    home.run(Script::default(), &layers).fails(2, &["--layers shortens shapes only"]);
    let long = ["bench", "tiny", "-p", "60", "-n", "9"];
    let ran = home.run(Script::default(), &long);
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.contains("60 tokens") && ran.stderr.contains("64 tokens"), "{ran:?}");
}

#[test]
fn logits_become_a_numpy_file() {
    let home = Home::new();
    let path = home.dir.path().join("x.npy");
    let out = path.to_str().unwrap();
    let args = ["logits", "tiny", "--tokens", "7,9,11", "--chunk", "2", "--out", out];
    home.run(Script::default(), &args).prints("");
    let bytes = fs::read(&path).unwrap();
    assert!(String::from_utf8_lossy(&bytes[..128]).contains("(3, 512)"));
    assert_eq!(bytes.len(), 128 + 3 * 512 * 4);
    let value = |row: usize, col: usize| {
        let at = 128 + (row * 512 + col) * 4;
        f32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    };
    assert_eq!((value(0, 0), value(1, 1), value(2, 0)), (7.0, 9.0 + 1.0 / 1024.0, 11.0));
    let unknown = ["logits", "tiny", "--tokens", "512", "--out", out];
    home.run(Script::default(), &unknown).fails(1, &["token 512", "0 to 511"]);
    let nowhere = ["logits", "tiny", "--tokens", "1", "--out", "no/such/folder/x.npy"];
    home.run(Script::default(), &nowhere).fails(1, &["cannot write no/such/folder/x.npy"]);
}

#[cfg(unix)]
#[test]
fn logits_never_replace_what_is_no_file() {
    use std::os::unix::fs::FileTypeExt;
    use std::os::unix::net::UnixListener;

    let home = Home::new();
    let path = home.dir.path().join("socket");
    let _listener = UnixListener::bind(&path).unwrap();
    let folder = home.dir.path().to_str().unwrap();
    for (out, what) in
        [(path.to_str().unwrap(), "a device, a pipe or a socket"), (folder, "a folder")]
    {
        let args = ["logits", "tiny", "--tokens", "7", "--out", out];
        home.run(Script::default(), &args).fails(2, &[what, "name a file"]);
    }
    assert!(fs::metadata(&path).unwrap().file_type().is_socket());
}

#[test]
fn quantize_prints_its_report_as_a_table_or_as_one_object() {
    let home = Home::new();
    let ran = home.run(Script::default(), &["quantize", "tiny", "out"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let lines = ran.stdout.lines().collect::<Vec<_>>();
    assert!(lines[0].starts_with("ROLE  TENSORS  WEIGHTS  BITS"), "{ran:?}");
    assert!(lines[1].starts_with("mlp   3        500      4.50  6.250 %"), "{ran:?}");
    assert!(lines[2].contains("out: 500 weights at 4.50 bits, 1.0 kB -> 300 B in 2 files"));
    assert!(ran.stderr.contains("in floats, because scripted reason: lm_head"), "{ran:?}");

    let ran = home.run(Script::default(), &["quantize", "tiny", "out", "--json"]);
    let mut object: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert!(object["elapsed_s"].as_f64().unwrap() > 0.0);
    object["elapsed_s"] = Value::Null;
    object["notes"] = Value::Null;
    let expected = json!({
        "source": "tiny", "target": "out", "family": "scripted", "coding": "scripted",
        "n_weights": 500, "bits_per_weight": 4.496, "source_bytes": 1000, "target_bytes": 300,
        "n_files": 2, "n_resumed_files": 0, "elapsed_s": null,
        "roles": [{"role": "mlp", "n_tensors": 3, "n_weights": 500, "n_bytes": 281,
                   "bits_per_weight": 4.496, "relative_rms_error": 0.0625}],
        "floats": [{"path": "lm_head", "reason": "scripted reason"}], "notes": null,
    });
    // As text: the order of the keys is part of the promise.
    assert_eq!(object.to_string(), expected.to_string());
}

/// The scripted runner writes the request into its notes.
#[test]
fn quantize_asks_for_what_its_flags_say() {
    let home = Home::new();
    let check = |flags: &[&str], says: &[&str]| {
        let args: Vec<_> = ["quantize", "tiny", "out"].iter().chain(flags).copied().collect();
        let ran = home.run(Script::default(), &args);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        for text in says {
            assert!(ran.stderr.contains(text), "no {text:?} in {ran:?}");
        }
    };
    let affine = "Codes(Coding { mode: Affine, bits: 4, group_size: 64 })";
    check(&[], &[affine, "high_bits: None", "keep: []", "dtype: None", "overwrites: false"]);
    let target = env::current_dir().unwrap().join("out");
    check(&[], &[home.model().to_str().unwrap(), target.to_str().unwrap()]);
    let coding = "Codes(Coding { mode: Affine, bits: 6, group_size: 32 })";
    check(&["--bits", "6", "--group-size", "32"], &[coding]);
    check(&["--mode", "nvfp4"], &["Codes(Coding { mode: Nvfp4, bits: 4, group_size: 16 })"]);
    check(&["--mode", "bf16", "--overwrite"], &["Floats(Bf16)", "overwrites: true"]);
    let mixed = "Codes(Coding { mode: Affine, bits: 3, group_size: 64 })";
    check(&["--recipe", "mixed_3_6"], &[mixed, "high_bits: Some(6)"]);
    check(&["--dtype", "f16", "--keep", "a", "--keep", "b.c"], &["Some(F16)", r#"["a", "b.c"]"#]);
    let at =
        r#"[("lm_head", Coding { mode: Mxfp8, bits: 8, group_size: 32 }), ("v_proj", Coding { "#;
    check(&["--at", "lm_head=8:32:mxfp8", "--at", "v_proj=5"], &[at, "bits: 5, group_size: 64"]);
}

#[test]
fn bad_flags_of_quantize_are_usage_errors_that_say_what_is_allowed() {
    let home = Home::new();
    let cases: [(&[&str], &str); 15] = [
        (&["--mode", "int4"], "affine, mxfp4, mxfp8, nvfp4, bf16, f16, f32"),
        (&["--bits", "7"], "--bits must be one of 2, 3, 4, 5, 6, 8 for affine, not 7"),
        (&["--group-size", "48"], "--group-size must be one of 32, 64, 128 for affine"),
        (&["--mode", "mxfp4", "--group-size", "64"], "--group-size must be one of 32 for mxfp4"),
        (&["--mode", "mxfp8", "--bits", "4"], "--bits must be one of 8 for mxfp8"),
        (&["--mode", "bf16", "--bits", "4"], "--bits has no meaning with --mode bf16"),
        (&["--mode", "f16", "--keep", "lm_head"], "--keep has no meaning"),
        (&["--mode", "f16", "--dtype", "f16"], "--dtype has no meaning"),
        (&["--recipe", "mixed_1_2"], "mixed_2_6"),
        (&["--recipe", "mixed_2_6", "--bits", "4"], "contradict each other"),
        (&["--recipe", "mixed_2_6", "--mode", "mxfp4"], "--recipe is mixed, which is affine"),
        (&["--dtype", "fp8"], "--dtype 'fp8' is none of bf16, f16, f32"),
        (&["--at", "lm_head"], "there is no '='"),
        (&["--at", "lm_head=7"], "bits must be one of"),
        (&["--at", "lm_head=4:32:fp4"], "none of affine, mxfp4, mxfp8, nvfp4"),
    ];
    for (flags, says) in cases {
        let args: Vec<_> = ["quantize", "tiny", "out"].iter().chain(flags).copied().collect();
        home.run(Script::default(), &args).fails(2, &[says]);
    }
    let shape = ["quantize", "shape:qwen3-8b:4bit", "out"];
    home.run(Script::default(), &shape).fails(2, &["random weights"]);
    home.run(Script::default(), &["quantize", "absent", "out"]).fails(1, &["there is no model"]);
}

#[test]
fn a_quantization_that_fails_says_why_and_how_to_go_on() {
    let home = Home::new();
    let quantize = QuantizeScript::Fails("cannot write x: no space".into());
    let ran = home.run(Script { quantize, ..Script::default() }, &["quantize", "tiny", "out"]);
    ran.fails(1, &["error: cannot write x: no space", "the same command goes on"]);
}

#[test]
fn doctor_finds_what_is_wrong() {
    let home = Home::new();
    let checks = |program: &Program| {
        let ran = home.run_program(program, &["doctor", "--json"]);
        let object: Value = serde_json::from_str(&ran.stdout).unwrap();
        assert_eq!(ran.code, Some(if object["ok"] == true { 0 } else { 1 }), "{ran:?}");
        object["checks"].clone()
    };
    let find = |checks: &Value, name: &str| {
        checks.as_array().unwrap().iter().find(|check| check["name"] == name).cloned().unwrap()
    };
    let fine = checks(&Program::Serve(Script::default()));
    for name in ["backend", "MLX library", "runner", "device", "data folder"] {
        assert_eq!(find(&fine, name)["status"], "ok", "{fine}");
    }
    assert!(find(&fine, "device")["detail"].as_str().unwrap().contains("scripted (cpu)"));
    let broken = checks(&Program::OtherVersion);
    assert_eq!(find(&broken, "runner")["status"], "problem");
}

#[test]
fn help_lists_only_commands_that_exist() {
    let ran = Home::new().run(Script::default(), &["--help"]);
    let commands: Vec<_> = ran
        .stdout
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    let expected = [
        "run", "serve", "ps", "stop", "pull", "list", "show", "rm", "bench", "logits", "quantize",
        "cache", "doctor", "help",
    ];
    assert_eq!(commands, expected);
}

/// Reads lines until one begins so.
fn wait_for(reader: &mut impl BufRead, start: &str) {
    let mut line = String::new();
    while !line.starts_with(start) {
        line.clear();
        assert!(reader.read_line(&mut line).unwrap() > 0, "no line {start:?}");
    }
}

/// A server on a free port, and what it says after it listens.
#[cfg(unix)]
fn serve(home: &Home, script: Script, args: &[&str]) -> (Child, impl BufRead, String) {
    let program = Program::Serve(script);
    let args: Vec<_> = ["serve", "--port", "0"].iter().chain(args).copied().collect();
    let mut child = home.command(&program, &args).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.starts_with("listening on http://127.0.0.1:") {
        line.clear();
        assert!(stderr.read_line(&mut line).unwrap() > 0, "it does not listen");
    }
    let port = line.trim_end().rsplit(':').next().unwrap().to_owned();
    (child, stderr, port)
}

#[cfg(unix)]
#[test]
fn a_server_is_asked_by_ps_and_stop_and_ends_with_0_on_sigterm() {
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    let home = Home::new();
    let (mut child, mut stderr, port) = serve(&home, Script::default(), &["tiny", "--quiet"]);
    wait_for(&mut stderr, "tiny is loaded");
    let ask = |args: &[&str]| {
        let args: Vec<_> = args.iter().chain(&["--port", &port]).copied().collect();
        home.run(Script::default(), &args)
    };
    let ran = ask(&["ps"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.stdout.contains("tiny") && ran.stdout.contains("loaded"), "{ran:?}");
    let json: Value = serde_json::from_str(&ask(&["ps", "--json"]).stdout).unwrap();
    assert_eq!(json[0]["model"], "tiny", "{json}");
    let ran = ask(&["stop", "tiny"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), ""), "{ran:?}");
    ask(&["stop", "strange"]).fails(1, &["not loaded"]);
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    ask(&["ps"]).fails(1, &["no server answers", "offshoot serve"]);
}

#[test]
fn a_server_that_others_reach_needs_keys() {
    let home = Home::new();
    let run = |args: &[&str]| home.run(Script::default(), args);
    run(&["serve", "--host", "0.0.0.0", "--port", "0"]).fails(2, &["--api-key-file"]);
    run(&["serve", "--allow-origin", "*"]).fails(2, &["--allow-origin", "https://app.example"]);
    run(&["serve", "--api-key-file", "no/such/file"]).fails(1, &["no/such/file"]);
    let keys = home.dir.path().join("keys");
    fs::write(&keys, "short\n").unwrap();
    let file = keys.to_str().unwrap();
    run(&["serve", "--api-key-file", file]).fails(1, &["line 1", "16 characters"]);
    run(&["serve", "--keep-alive", "soon"]).fails(2, &["--keep-alive", "90s, 5m or 1h"]);
}

#[cfg(unix)]
#[test]
fn ctrl_c_stops_a_quantization_and_says_what_is_kept() {
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    let home = Home::new();
    let script = Script { quantize: QuantizeScript::Hangs, announces: true, ..Script::default() };
    let args = ["quantize", "tiny", "out"];
    let mut child = home.command(&Program::Serve(script), &args).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    wait_for(&mut stderr, "scripted: quantizing");
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    let mut rest = String::new();
    stderr.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(rest.contains("1 of 2 files are finished and kept: the same command"), "{rest}");
}

#[cfg(unix)]
#[test]
fn ctrl_c_stops_a_load_a_prefill_and_an_answer() {
    let home = Home::new();
    let noisy = |script: Script| Program::Serve(Script { announces: true, ..script });
    let cases = [
        (noisy(Script { load: LoadScript::Hangs, ..Script::default() }), "scripted: loading", ""),
        (noisy(Script { prefill_steps: None, ..Script::default() }), "scripted: prefill", ""),
        (
            noisy(Script { endless: true, context_tokens: 1 << 30, ..Script::default() }),
            "scripted: answering",
            "one",
        ),
    ];
    for (program, moment, shown) in cases {
        let mut child = home.command(&program, &["run", "tiny", "hi"]).spawn().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        wait_for(&mut stderr, moment);
        let pid = child.id().to_string();
        assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
        let mut rest = String::new();
        stderr.read_to_string(&mut rest).unwrap();
        let ran = finish(child);
        assert_eq!(ran.code, Some(130), "{moment}: {ran:?} {rest}");
        assert!(ran.stdout.starts_with(shown), "{moment}: {ran:?}");
        assert!(!rest.contains("error"), "{moment}: {rest}");
    }
}

/// How long a chat may take to show something: far longer than it ever does.
#[cfg(unix)]
const PATIENCE: Duration = Duration::from_secs(60);

/// A chat on a terminal of its own.
#[cfg(unix)]
struct Chat {
    child: Child,
    terminal: fs::File,
    /// What a thread reads from the terminal, so that waiting for it can end.
    output: mpsc::Receiver<Vec<u8>>,
    seen: String,
}

#[cfg(unix)]
impl Chat {
    fn start(home: &Home, script: Script) -> Self {
        Self::of(home.command(&Program::Serve(script), &["run", "tiny"]))
    }

    fn of(mut command: Command) -> Self {
        let pty = nix::pty::openpty(None, None).unwrap();
        let side = || Stdio::from(pty.slave.try_clone().unwrap());
        command.stdin(side()).stdout(side()).stderr(side());
        command.env("TERM", "xterm").env_remove("NO_COLOR");
        let terminal = fs::File::from(pty.master);
        let (sender, output) = mpsc::channel();
        let mut reader = terminal.try_clone().unwrap();
        thread::spawn(move || {
            let mut buf = [0; 4096];
            while let Ok(n @ 1..) = reader.read(&mut buf) {
                if sender.send(buf[..n].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self { child: command.spawn().unwrap(), terminal, output, seen: String::new() }
    }

    fn types(&mut self, keys: &str) {
        self.terminal.write_all(keys.as_bytes()).unwrap();
    }

    /// What appears up to and including `text`, after what was seen before.
    fn shows(&mut self, text: &str) -> String {
        loop {
            if let Some(at) = self.seen.find(text) {
                let rest = self.seen.split_off(at + text.len());
                return std::mem::replace(&mut self.seen, rest);
            }
            match self.output.recv_timeout(PATIENCE) {
                Ok(bytes) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(error) => panic!("{error} before {text:?}: {:?}", self.seen),
            }
        }
    }

    /// What Ctrl-C does on a terminal in its normal mode.
    fn interrupt(&self) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    }
}

#[cfg(unix)]
impl Drop for Chat {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(unix)]
#[test]
fn a_chat_goes_on_after_an_answer_was_stopped() {
    let home = Home::new();
    let context_tokens = 1 << 30;
    let script =
        Script { answer: vec![5, 1, 6, 2], endless: true, context_tokens, ..Script::default() };
    let mut chat = Chat::start(&home, script);
    assert!(chat.shows("> ").contains("/help for help"));
    for _ in 0..2 {
        chat.types("hi\r");
        let answer = chat.shows("two");
        assert!(answer.contains("\x1b[2mone\x1b[0m"), "thinking is dimmed: {answer:?}");
        chat.interrupt();
        chat.shows("> ");
    }
    chat.types("/help\r");
    chat.shows("stops an answer");
    chat.shows("> ");
    chat.types("not sent\x03");
    chat.shows("Ctrl-C again or Ctrl-D to leave");
    chat.shows("> ");
    chat.types("\x04");
    assert_eq!(chat.child.wait().unwrap().code(), Some(0));
    let history = fs::read_to_string(home.dir.path().join("history")).unwrap();
    assert!(history.contains("hi") && !history.contains("not sent"), "{history:?}");
}

#[cfg(unix)]
#[test]
fn a_chat_that_outgrows_the_context_says_how_to_go_on() {
    let home = Home::new();
    let script = Script { answer: vec![1, 2], context_tokens: 12, ..Script::default() };
    let mut chat = Chat::start(&home, script);
    chat.shows("/help for help");
    chat.shows("> ");
    chat.types("hi hi\r");
    chat.shows("one two");
    chat.shows("> ");
    chat.types("hi hi hi hi hi hi hi hi hi hi hi hi\r");
    chat.shows("context is 12 tokens");
    chat.shows("/clear forgets the conversation");
    chat.shows("> ");
    chat.types("/clear\r");
    chat.shows("> ");
    chat.types("hi hi\r");
    chat.shows("one two");
    chat.shows("> ");
    chat.types("\x04");
    assert_eq!(chat.child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_trace_is_replayed_and_its_hits_are_counted_beside_those_of_foresight() {
    let home = Home::new();
    let trace = home.dir.path().join("trace.jsonl");
    // Two blocks of room: the second request finds both, the third one, the fourth none.
    let lines = ["[1, 2]", "[1, 2]", "[1, 3]", "[4, 5]"];
    let text = lines.map(|ids| format!("{{\"timestamp\": 0, \"hash_ids\": {ids}}}\n")).concat();
    fs::write(&trace, &text).unwrap();
    let trace = trace.to_str().unwrap();
    let arguments = ["cache", "simulate", "--trace", trace, "--budget-blocks", "2", "--json"];
    let ran = home.run(Script::default(), &arguments);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let found: Value = serde_json::from_str(&ran.stdout).unwrap();
    let wanted = json!({
        "policy": "hazard", "budget_blocks": 2, "requests": 4, "blocks": 8, "hits": 3,
        "hit_ratio": 0.375, "min_hit_ratio": 0.375,
    });
    assert_eq!(found, wanted);
    let piped = home.run_with_stdin(
        text.as_bytes(),
        &["cache", "simulate", "--trace", "-", "--budget-blocks", "2"],
    );
    assert!(piped.stdout.contains("hits           3\n"), "{piped:?}");
    let gone = ["cache", "simulate", "--trace", "gone", "--budget-blocks", "2"];
    home.run(Script::default(), &gone).fails(1, &["cannot open gone"]);
    let wrong = [&arguments[..], &["--policy", "best"]].concat();
    home.run(Script::default(), &wrong).fails(2, &["best", "hazard"]);
}
