//! Quantizing through the protocol's request: the folder that comes out, and whose fault a failure
//! is.

use std::ops::ControlFlow;
use std::path::Path;

use engine::{Engine, Outcome, quantize};
use protocol::{
    CacheSettings, CodingMode, Fault, FloatType, LoadRequest, ModelSource, QuantizeRequest,
    QuantizeTarget, RequestId,
};

fn request(target: &Path, coding: QuantizeTarget) -> QuantizeRequest {
    let source =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../goldens/quantized/qwen3_affine8_32_tied");
    QuantizeRequest {
        id: RequestId(5),
        source: source.to_str().unwrap().to_owned(),
        target: target.to_str().unwrap().to_owned(),
        coding,
        high_bits: None,
        keep: vec![],
        at: vec![],
        dtype: None,
        overwrites: false,
    }
}

#[test]
fn a_request_becomes_a_folder_that_loads_and_a_report() {
    let dir = tempfile::tempdir().unwrap();
    let [floats, codes] = ["floats", "codes"].map(|name| dir.path().join(name));
    let mut last = None;
    let mut on_progress = |progress| {
        last = Some(progress);
        ControlFlow::Continue(())
    };
    let float_request = request(&floats, QuantizeTarget::Floats(FloatType::F16));
    let made = quantize(&float_request, None, &mut on_progress).map_err(|e| e.message).unwrap();
    let Outcome::Done(report) = made else { panic!("stopped") };
    assert_eq!((report.id, report.n_shards, report.coding.as_str()), (RequestId(5), 1, "f16"));
    let last = last.unwrap();
    assert_eq!((last.id, last.done_shards, last.n_shards), (RequestId(5), 1, 1));
    assert_eq!(last.done_bytes, last.total_bytes);

    let coding = QuantizeTarget::Codes(CodingMode::Mxfp4.usual());
    let again = QuantizeRequest { source: float_request.target, ..request(&codes, coding) };
    quantize(&again, None, &mut |_| ControlFlow::Continue(())).map_err(|e| e.message).unwrap();
    let source = ModelSource::Folder { path: again.target };
    let loaded = Engine::load(
        &LoadRequest {
            source,
            cache: CacheSettings::default(),
            chunk_tokens: None,
            deterministic: false,
            max_rows: None,
        },
        None,
        &mut |_, _| ControlFlow::Continue(()),
    );
    let info = loaded.map_err(|e| e.message).unwrap().info();
    assert_eq!(info.dtype, "f16");
    assert_eq!(info.quantization.as_deref(), Some("4-bit mxfp4, group 32"));
}

#[test]
fn a_stop_is_no_error_and_bad_requests_are_the_callers_fault() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("target");
    let floats = QuantizeTarget::Floats(FloatType::F32);
    let stopped = quantize(&request(&target, floats), None, &mut |_| ControlFlow::Break(()));
    assert_eq!(stopped.map_err(|e| e.message).unwrap(), Outcome::Stopped);
    let check = |request: &QuantizeRequest, fault: Fault, says: &str| {
        let made = quantize(request, None, &mut |_| ControlFlow::Continue(()));
        let error = made.err().unwrap();
        assert_eq!(error.fault, fault, "{}", error.message);
        assert!(error.message.contains(says), "{}", error.message);
    };
    let codes = request(&target, QuantizeTarget::Codes(CodingMode::Affine.usual()));
    check(&codes, Fault::Caller, "quantized already");
    let keep = vec!["a..b".to_owned()];
    check(&QuantizeRequest { keep, ..codes.clone() }, Fault::Caller, "'a..b'");
    let source = "/no/such/folder".to_owned();
    check(&QuantizeRequest { source, ..codes }, Fault::Caller, "/no/such/folder");
    quantize(&request(&target, floats), None, &mut |_| ControlFlow::Continue(()))
        .map_err(|e| e.message)
        .unwrap();
    let taken = request(&target, floats);
    check(&taken, Fault::Caller, "exists already");
}
