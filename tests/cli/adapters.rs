//! Adapters that a LoRA stage starts from: what belongs to other weights is refused or warned of before anything runs.

use std::fs;

use super::transcript::Transcript;

/// The settings of an adapter in the folder `adapter`; its weights are not looked at yet.
fn settings(t: &Transcript, base: &str, more: &str) {
    let text = format!(
        "{{\"peft_type\": \"LORA\", \"r\": 8, \"lora_alpha\": 16, \"base_model_name_or_path\": \"{base}\", {more}\"bias\": \"none\"}}"
    );
    t.write("adapter/adapter_config.json", text);
}

fn arguments<'a>(command: &'a str, teacher: &'a str) -> [&'a str; 6] {
    [command, "smoke", "--set", teacher, "--set", "stage.1.lora.from=adapter"]
}

#[test]
fn adapters() {
    let mut t = Transcript::new();
    t.model("model");
    let (builtin, own) = ("teacher.model=builtin:stories260K", "teacher.model=model");
    settings(&t, "base", "\"init_lora_weights\": \"pissa\", ");
    t.refused("of changed weights", &arguments("check", builtin));
    t.refused("of changed weights", &arguments("plan", builtin));
    t.refused("of changed weights", &arguments("convert", builtin));
    settings(&t, "base", "\"alora_invocation_tokens\": [5], ");
    t.refused("of a kind that is not read", &arguments("check", builtin));

    let warned = |t: &mut Transcript, heading: &str, teacher: &str, expected: bool| {
        let ran = t.run(heading, &arguments("check", teacher));
        assert_eq!(ran.status, Some(0), "{}", ran.stderr);
        assert_eq!(ran.stderr.contains("warning: "), expected, "{heading}: {}", ran.stderr);
        let planned = super::transcript::subquad(&t.path(""), &arguments("plan", teacher)).output().unwrap();
        let said = String::from_utf8(planned.stderr).unwrap();
        assert_eq!(said.contains("softmax attention and may do harm"), expected, "{heading}: {said}");
    };
    settings(&t, "builtin:stories260K", "");
    warned(&mut t, "of the teacher, by its name", builtin, true);
    settings(&t, "./model", "");
    warned(&mut t, "of the teacher, by its folder", own, true);
    warned(&mut t, "of another model that is not converted", builtin, true);
    let config = fs::read_to_string(t.path("model/config.json")).unwrap();
    t.write("model/config.json", config.replacen('{', "{\"_name_or_path\": \"someone/stories\",", 1));
    settings(&t, "someone/stories", "");
    warned(&mut t, "of the teacher, by the name in its config.json", own, true);
    settings(&t, "someone/converted", "");
    warned(&mut t, "of a model that is not known", own, false);
    t.write("converted/config.json", "{\"model_type\": \"subquad\"}");
    settings(&t, "converted", "");
    warned(&mut t, "of a converted model", own, false);
    t.compare("adapters");
}
