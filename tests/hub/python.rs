//! Python's client of the Hub and our binary, through the server of these tests: what either sends, the other reads, and
//! both share a cache. `scripts/hub` runs this; it needs a Python with `huggingface_hub`, named by the variable PYTHON.

mod server;

use std::process::Command;

#[test]
fn python_and_we_understand_each_other() {
    let python =
        std::env::var("PYTHON").expect("the variable PYTHON names a Python with `huggingface_hub`: run scripts/hub");
    let root = env!("CARGO_MANIFEST_DIR");
    let hub = server::Hub::start();
    // Small enough that weights come in several.
    hub.state().part = Some(300_000);
    let home = tempfile::tempdir().unwrap();
    let status = Command::new(python)
        .arg(format!("{root}/tests/python/hub_client.py"))
        .current_dir(home.path())
        .env("HF_ENDPOINT", &hub.address)
        .env("HF_HOME", home.path().join("hf"))
        .env("HF_TOKEN", server::TOKEN)
        .env("HF_HUB_DISABLE_TELEMETRY", "1")
        // Large files then go by the LFS protocol, which the server speaks.
        .env("HF_HUB_DISABLE_XET", "1")
        .env("SUBQUAD", env!("CARGO_BIN_EXE_subquad"))
        .env("ASSETS", format!("{root}/assets"))
        .status()
        .unwrap();
    assert!(status.success());
    // Both sent large files as these go: apart from the commit, in parts.
    let asked = hub.asked();
    assert!(asked.iter().filter(|asked| asked.path.ends_with("/complete")).count() >= 3);
    assert!(asked.iter().filter(|asked| asked.path.ends_with("/commit/main")).count() >= 3);
}
