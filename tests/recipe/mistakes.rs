//! Every kind of error, with its exact place and hint.

use super::{VALID, errors, with_mixers};

/// `VALID` with one part replaced has exactly these errors. Every wrong case is shown, not only the first.
fn expect(cases: &[(&str, &str, &[&str])]) {
    let mut wrong = String::new();
    for (from, to, expected) in cases {
        assert_eq!(VALID.matches(from).count(), 1, "{from:?} is in the recipe once");
        let got = errors(&VALID.replace(from, to), &[]);
        let expected: Vec<String> = expected.iter().map(|e| with_mixers(e)).collect();
        if got != expected {
            wrong.push_str(&format!("{from:?} -> {to:?}\n  got      {got:#?}\n  expected {expected:#?}\n"));
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn unknown_and_missing_keys_are_errors() {
    expect(&[
        (
            "seed = 7",
            "seeed = 7",
            &[
                "1:1+5 unknown key `seeed` | did you mean `seed`? known here: `seed`, `teacher`, `student`, `data`, `stage`, `export`",
            ],
        ),
        (
            "[teacher]\nmodel = \"builtin:books-llama-7m\"\n",
            "",
            &[r#"0:0+0 the table `[teacher]` is missing | add `[teacher]` with `model = "builtin:books-llama-7m"`"#],
        ),
        (
            "model = \"builtin:books-llama-7m\"",
            "modle = \"x\"",
            &[
                r#"2:1+9 `teacher.model` is missing | write `model = "builtin:books-llama-7m"`"#,
                "3:1+5 unknown key `teacher.modle` | did you mean `model`? known here: `model`",
            ],
        ),
        (
            "mixer = \"hedgehog\"",
            "mixer = \"hedgehg\"",
            &["5:9+9 `student.mixer` is unknown: `hedgehg` | did you mean `hedgehog`? there is: {mixers}"],
        ),
        (
            "mixer = \"hedgehog\"",
            "mixer = \"quux\"",
            &["5:9+6 `student.mixer` is unknown: `quux` | there is: {mixers}"],
        ),
        (
            "mixer = \"hedgehog\"",
            "mixer = \"hedgehog\"\nfeature_width = 0\ninit = \"xavier\"\nfeature_with = 3",
            &[
                "6:17+1 `student.feature_width` must be a whole number from 2 to 1024 | columns of each head's map; the head has twice as many features (default: the head width, as LoLCATs' 8B configs); of one alone the softmax is always 1",
                "7:8+8 `student.init` must be one of identity, kaiming | how maps start: a (rectangular) identity, which LoLCATs' published commands select, or Kaiming-uniform",
                "8:1+12 unknown key `student.feature_with` | did you mean `feature_width`? known here: `mixer`, `feature_width`, `init`, `output_scale`, `window`, `keep_softmax`",
            ],
        ),
        ("size = 64, ", "", &["6:10+21 `student.window.size` is missing | write `size = 64`"]),
        (
            "\"600K\"",
            "\"600K\"\nschedule = { kind = \"cosine\", factor = 0.1 }",
            &[
                r#"14:31+6 unknown key `stage.0.schedule.factor` | `factor` belongs to `stage.schedule` with `kind = "plateau"`; known here: `kind`, `min_lr`, `warmup`"#,
            ],
        ),
        (
            "\"600K\"",
            "\"600K\"\nschedule = { kind = \"cosin\", factor = 0.1 }",
            &[
                "14:21+7 `stage.0.schedule.kind` is unknown: `cosin` | did you mean `cosine`? there is: `plateau`, `cosine`, `constant`",
            ],
        ),
        (
            "\"600K\"",
            "\"600K\"\nrank = 3",
            &[
                "14:1+4 unknown key `stage.0.rank` | `rank` belongs to `stage.lora`; known here: `kind`, `tokens`, `loss`, `optimizer`, `schedule`, `batch`, `checkpoint`",
            ],
        ),
        (
            "kind = \"lora\"",
            "kind = \"loar\"",
            &[
                "15:8+6 `stage.1.kind` is unknown: `loar` | did you mean `lora`? there is: `calibrate`, `attention-transfer`, `lora`, `merge`, `evaluate`",
            ],
        ),
        (
            "kind = \"lora\"\n",
            "",
            &[
                "14:1+9 `stage.1.kind` is missing | one of: `calibrate`, `attention-transfer`, `lora`, `merge`, `evaluate`",
            ],
        ),
        (
            "kind = \"merge\"",
            "kind = \"merge\"\ntokens = 3",
            &[
                r#"19:1+6 unknown key `stage.2.tokens` | `tokens` belongs to `stage` with `kind = "calibrate"` or `stage` with `kind = "attention-transfer"` or `stage` with `kind = "lora"` or `stage` with `kind = "evaluate"`; known here: `kind`"#,
            ],
        ),
        (
            "text = \"builtin:books-valid\"",
            "",
            &[r#"19:1+9 `stage.3.text` is missing | write `text = "builtin:books-valid"`"#],
        ),
        (
            "text = \"builtin:books-valid\"",
            "text = \"x\"\n[exprot]\nshard = 3",
            &[
                "22:2+6 unknown key `exprot` | did you mean `export`? known here: `seed`, `teacher`, `student`, `data`, `stage`, `export`",
            ],
        ),
    ]);
}

#[test]
fn wrong_types_are_errors() {
    expect(&[
        (
            "model = \"builtin:books-llama-7m\"",
            "model = 7",
            &[r#"3:9+1 `teacher.model` must be a string, not a whole number | for example "builtin:books-llama-7m""#],
        ),
        (
            "[0, 5]",
            "[-1, \"a\"]",
            &[
                "7:17+2 `student.keep_softmax.0` cannot be -1 | from 0 to 9999",
                "7:21+3 `student.keep_softmax.1` must be a whole number, not a string | for example 0",
            ],
        ),
        (
            "[0, 5]",
            "3",
            &[
                "7:16+1 `student.keep_softmax` must be a list of layers or a table, not a whole number | for example [0, 11] or { every = 4 }",
            ],
        ),
        (
            "sequence = 512",
            "sequence = \"512\"",
            &["10:12+5 `data.sequence` must be a whole number, not a string | write it without quotes: 512"],
        ),
        (
            "\"600K\"",
            "6e6",
            &[
                r#"13:10+3 `stage.0.tokens` must be a number of tokens such as "6M" or a whole number, not a floating-point number | for example "6M""#,
            ],
        ),
        (
            "\"600K\"",
            "\"600K\"\noptimizer = { lr = 2, betas = [0.9], eps = \"1e-8\" }",
            &[
                "14:20+1 `stage.0.optimizer.lr` cannot be 2.0 | above 0 and at most 1",
                "14:31+5 `stage.0.optimizer.betas` has 1 item | exactly 2, for example [0.9, 0.999]",
                "14:44+6 `stage.0.optimizer.eps` must be a number, not a string | write it without quotes: 1e-8",
            ],
        ),
        (
            "\"600K\"",
            "\"600K\"\nloss = 3",
            &["14:8+1 `stage.0.loss` must be a table, not a whole number | write `loss = { ... }` or `[stage.0.loss]`"],
        ),
        (
            "300_000",
            "300_000\nlora = { on = [] , rank = 0}\ntrain_mixer = \"true\"",
            &[
                r#"17:15+2 `stage.1.lora.on` has 0 items | at least 1 and at most 7, for example ["q", "k", "v", "o"]"#,
                "17:27+1 `stage.1.lora.rank` cannot be 0 | from 1 to 4096",
                "18:15+6 `stage.1.train_mixer` must be true or false, not a string | write it without quotes: true",
            ],
        ),
    ]);
}

#[test]
fn impossible_values_are_errors() {
    expect(&[
        ("seed = 7", "seed = -1", &["1:8+2 `seed` cannot be -1 | from 0 to 9007199254740991"]),
        (
            "model = \"builtin:books-llama-7m\"",
            "model = \"\"",
            &[r#"3:9+2 `teacher.model` is empty | for example "builtin:books-llama-7m""#],
        ),
        ("size = 64", "size = 0", &["6:19+1 `student.window.size` cannot be 0 | from 1 to 16777216"]),
        (
            "combine = \"joint\"",
            "combine = \"liger\"",
            &["6:33+7 `student.window.combine` cannot be `liger` | one of: `joint`, `fixed`, `learned`"],
        ),
        ("[0, 5]", "[0, 5, 0]", &["7:23+1 `student.keep_softmax` names 0 twice | remove one"]),
        ("[0, 5]", "{ every = 1 }", &["7:26+1 `student.keep_softmax.every` cannot be 1 | from 2 to 10000"]),
        ("sequence = 512", "sequence = 1", &["10:12+1 `data.sequence` cannot be 1 | from 2 to 16777216"]),
        (
            "sequence = 512",
            "sequence = 99999999999999999999999999999999999999999999999",
            &["10:12+47 `data.sequence` cannot be that large a number | from 2 to 16777216"],
        ),
        ("\"600K\"", "\"600k\"", &[r#"13:10+6 `stage.0.tokens` cannot be "600k" | did you mean "600K"?"#]),
        (
            "\"600K\"",
            "\"600X\"",
            &[r#"13:10+6 `stage.0.tokens` cannot be "600X" | a number of tokens such as "6M" or a whole number"#],
        ),
        ("\"600K\"", "0", &[r#"13:10+1 `stage.0.tokens` cannot be zero | for example "6M""#]),
        ("\"600K\"", "-5", &[r#"13:10+2 `stage.0.tokens` cannot be negative | for example "6M""#]),
        ("\"600K\"", "\"-5M\"", &[r#"13:10+5 `stage.0.tokens` cannot be negative | for example "6M""#]),
        ("\"600K\"", "\"0.1\"", &[r#"13:10+5 `stage.0.tokens` is not a whole number of tokens | for example "6M""#]),
        ("\"600K\"", "\"99T\"", &[r#"13:10+5 `stage.0.tokens` cannot be "99T" | at most 10T tokens"#]),
        (
            "\"600K\"",
            "\"600K\"\noptimizer = { lr = 0, betas = [0.9, 1.0], clip = -1 }",
            &[
                "14:20+1 `stage.0.optimizer.lr` cannot be 0.0 | above 0 and at most 1",
                "14:37+3 `stage.0.optimizer.betas.1` cannot be 1.0 | from 0 below 1",
                "14:50+2 `stage.0.optimizer.clip` cannot be -1.0 | above 0 and at most 1000000000000",
            ],
        ),
        (
            "\"600K\"",
            "\"600K\"\noptimizer = { lr = nan, betas = [0.9, 0.99, 0.9] }",
            &[
                "14:20+3 `stage.0.optimizer.lr` cannot be NaN | above 0 and at most 1",
                "14:33+16 `stage.0.optimizer.betas` has 3 items | exactly 2, for example [0.9, 0.999]",
            ],
        ),
        (
            "\"600K\"",
            "\"600K\"\nbatch = { size = 0 }\ncheckpoint = { every = 0 }",
            &[
                "14:18+1 `stage.0.batch.size` cannot be 0 | from 1 to 65536",
                "15:24+1 `stage.0.checkpoint.every` cannot be 0 | from 1 to 1000000000",
            ],
        ),
        (
            "300_000",
            "300_000\nlora = { on = [\"q\", \"x\", \"q\"] }",
            &[
                "17:21+3 `stage.1.lora.on.1` cannot be `x` | did you mean `q`? one of: `q`, `k`, `v`, `o`, `gate`, `up`, `down`",
                r#"17:26+3 `stage.1.lora.on` names "q" twice | remove one"#,
            ],
        ),
        (
            "text = \"builtin:books-valid\"",
            "text = \"x\"\n[export]\nshard = \"5gb\"\ndtype = \"fp16\"",
            &[
                r#"23:9+5 `export.shard` cannot be "5gb" | did you mean "5GB"?"#,
                "24:9+6 `export.dtype` cannot be `fp16` | did you mean `f16`? one of: `f32`, `bf16`, `f16`",
            ],
        ),
    ]);
}

#[test]
fn what_cannot_go_together_is_an_error() {
    expect(&[
        (
            "size = 64",
            "size = 512",
            &[
                "6:19+3 a window of 512 keys covers the whole training window of 512 tokens: the mixer would not learn | make `student.window.size` smaller or `data.sequence` larger",
            ],
        ),
        (
            "\"600K\"",
            "\"1K\"",
            &[
                "13:10+4 `stage.0.tokens` is 1000, less than one step of 4096 tokens (batch 1 x accumulate 8 x sequence 512) | give more tokens, or make `batch` or `data.sequence` smaller",
            ],
        ),
        (
            "\"600K\"",
            "\"600K\"\nschedule = { min_lr = 0.5 }",
            &[
                "14:23+3 `stage.0.schedule.min_lr` is 0.5, above `optimizer.lr`, 0.01 | the rate only falls: make `min_lr` smaller or `lr` larger",
            ],
        ),
        (
            "\"600K\"",
            "\"600K\"\nloss = { output = 0 }",
            &[
                "14:8+14 both losses of `stage.0` have weight 0: there is nothing to learn | for example loss = { output = 1000.0 }",
            ],
        ),
        (
            "kind = \"lora\"\ntokens = 300_000",
            "kind = \"merge\"",
            &[
                r#"15:8+7 `stage.1` merges, but no `lora` stage before it left anything to merge | put it after a stage with `kind = "lora"`"#,
                r#"17:8+7 `stage.2` merges, but no `lora` stage before it left anything to merge | put it after a stage with `kind = "lora"`"#,
            ],
        ),
        (
            "text = \"builtin:books-valid\"",
            "text = \"x\"\ntokens = 511",
            &["22:10+3 `stage.3.tokens` is 511, less than one window of 512 tokens | at least 512"],
        ),
    ]);
}

/// Then nothing else of the text can be relied on. The sentence is the parser's own.
#[test]
fn text_that_is_not_toml_is_one_error() {
    expect(&[
        ("seed = 7\n", "seed = 7\nseed = 8\n", &["2:1+4 not valid TOML: duplicate key | -"]),
        ("[data]", "[student]", &["8:2+7 not valid TOML: duplicate key | -"]),
        ("seed = 7", "seed 7", &["1:6+0 not valid TOML: key with no value, expected `=` | -"]),
        (
            "seed = 7",
            "seed =",
            &["1:7+0 not valid TOML: string values must be quoted, expected literal string | write a value behind `=`"],
        ),
        (
            "mixer = \"hedgehog\"",
            "mixer = hedgehog\nkeep_sofmax = 3",
            &[
                r#"5:9+8 not valid TOML: string values must be quoted, expected literal string | text needs quotes: "hedgehog""#,
            ],
        ),
        (
            "keep_softmax = [0, 5]",
            "keep_softmax = [0, 5",
            &["8:1+0 not valid TOML: missing comma between array elements, expected `,` | -"],
        ),
        ("[data]", "[data", &["8:6+0 not valid TOML: unclosed table, expected `]` | -"]),
        ("\"600K\"", "\"600K", &[r#"13:15+0 not valid TOML: invalid basic string, expected `"` | -"#]),
    ]);
}

#[test]
fn the_shape_of_the_file_is_checked() {
    assert_eq!(
        errors("", &[]),
        [
            r#"0:0+0 the table `[teacher]` is missing | add `[teacher]` with `model = "builtin:books-llama-7m"`"#,
            r#"0:0+0 the table `[student]` is missing | add `[student]` with `mixer = "hedgehog"`"#,
            r#"0:0+0 the table `[data]` is missing | add `[data]` with `source = "builtin:books-train"`"#,
            r#"0:0+0 there is no `[[stage]]` | write `[[stage]]` and below it `kind = "attention-transfer"`"#,
        ]
    );
    let known = "known here: `mixer`, `feature_width`, `init`, `output_scale`, `window`, `keep_softmax`";
    let single = "stage = []\nteacher = 3\n[[data]]\n[student]\nmixer = \"hedgehog\"\nseed = 3\nfactor = 2\n";
    assert_eq!(
        errors(single, &[]),
        [
            r#"1:9+2 there is no `[[stage]]` | write `[[stage]]` and below it `kind = "attention-transfer"`"#
                .to_string(),
            "2:11+1 `teacher` must be a table, not a whole number | write `teacher = { ... }` or `[teacher]`".into(),
            "3:1+8 `data` must be a table, not a list | write `data = { ... }` or `[data]`".into(),
            format!("6:1+4 unknown key `student.seed` | `seed` belongs to the top of the file; {known}"),
            format!(
                "7:1+6 unknown key `student.factor` | `factor` belongs to `stage.schedule` with `kind = \"plateau\"`; {known}"
            ),
        ]
    );
    let brackets = VALID.replace("[[stage]]\nkind = \"attention-transfer\"\ntokens = \"600K\"\n", "");
    let brackets = brackets.replacen("[[stage]]", "[stage]", 1);
    let brackets = &brackets[..brackets.find("[[stage]]").unwrap_or(brackets.len())];
    assert_eq!(
        errors(brackets, &[]),
        [
            "11:1+7 `stage` must be a list of tables, not a table | write `[[stage]]`, with double brackets, before each one"
        ]
    );
}

#[test]
fn all_errors_come_at_once_in_the_order_of_the_text() {
    let text = VALID
        .replace("seed = 7", "sed = 7")
        .replace("\"hedgehog\"", "\"hedgehok\"")
        .replace("size = 64", "size = \"64\"")
        .replace("sequence = 512", "sequnce = 512")
        .replace("300_000", "\"3 M\"\nlora = { on = [\"q\", \"q\"] }")
        .replace("[data]", "# größer\n\t[data]");
    assert_eq!(
        errors(&text, &["stage.3.tokens=0"]),
        [
            "1:1+3 unknown key `sed` | did you mean `seed`? known here: `seed`, `teacher`, `student`, `data`, `stage`, `export`",
            "5:9+10 `student.mixer` is unknown: `hedgehok` | did you mean `hedgehog`? there is: {mixers}",
            "6:19+4 `student.window.size` must be a whole number, not a string | write it without quotes: 64",
            "11:1+7 unknown key `data.sequnce` | did you mean `sequence`? known here: `source`, `sequence`",
            "17:10+5 `stage.1.tokens` cannot be \"3 M\" | did you mean \"3M\"?",
            "18:21+3 `stage.1.lora.on` names \"q\" twice | remove one",
            "0:0+0 `--set stage.3.tokens=0`: `stage.3.tokens` cannot be zero | for example \"6M\"",
        ]
        .map(with_mixers)
    );
    // Columns count characters, not bytes.
    assert_eq!(
        errors(&VALID.replace("size = 64, combine = \"joint\"", "combine = \"größe\", size = 0"), &[]),
        [
            "6:22+7 `student.window.combine` cannot be `größe` | one of: `joint`, `fixed`, `learned`",
            "6:38+1 `student.window.size` cannot be 0 | from 1 to 16777216",
        ]
    );
}
