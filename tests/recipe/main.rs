//! Recipes: what is read, where it comes from, and what `--set` does to it. What is refused is in the modules.

mod hostile;
mod mistakes;
mod rendering;
mod schema;

use serde_json::Value;
use subquad::error::{Diagnostic, Error};
use subquad::model::Target;
use subquad::recipe::{EMBEDDED, KeepSoftmax, Recipe, description, render};
use subquad::stage::{AttentionTransfer, Evaluate, Lora};
use subquad::train::ScheduleKind;

/// An expectation that names every mixer: the list is the registry's.
fn with_mixers(text: &str) -> String {
    let names: Vec<String> = subquad::mixer::MIXERS.iter().map(|m| format!("`{}`", m.name)).collect();
    text.replace("{mixers}", &names.join(", "))
}

const VALID: &str = r#"seed = 7
[teacher]
model = "builtin:books-llama-7m"
[student]
mixer = "hedgehog"
window = { size = 64, combine = "joint" }
keep_softmax = [0, 5]
[data]
source = "builtin:books-train"
sequence = 512
[[stage]]
kind = "attention-transfer"
tokens = "600K"
[[stage]]
kind = "lora"
tokens = 300_000
[[stage]]
kind = "merge"
[[stage]]
kind = "evaluate"
text = "builtin:books-valid"
"#;

fn parse(text: &str, sets: &[&str]) -> Result<Recipe, Error> {
    let sets: Vec<String> = sets.iter().map(|set| set.to_string()).collect();
    Recipe::parse("test.toml", text, None, &sets)
}

fn valid(text: &str, sets: &[&str]) -> Recipe {
    parse(text, sets).unwrap_or_else(|error| panic!("{}", render(&error, false)))
}

/// Line, column, and length within the line, in characters; zeros for an error without a place.
fn position(text: &str, found: &Diagnostic) -> (usize, usize, usize) {
    let Some(span) = &found.span else { return (0, 0, 0) };
    let before = &text[..span.start];
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
    (line, column, text[span.clone()].lines().next().unwrap_or("").chars().count())
}

/// All errors, as "line:column+length what | hint".
fn errors(text: &str, sets: &[&str]) -> Vec<String> {
    let shown = |found: Diagnostic| {
        let (line, column, length) = position(text, &found);
        format!("{line}:{column}+{length} {} | {}", found.what, found.hint.as_deref().unwrap_or("-"))
    };
    match parse(text, sets) {
        Err(Error::Recipe { diagnostics, .. }) => diagnostics.into_iter().map(shown).collect(),
        Err(other) => panic!("{other:?}"),
        Ok(_) => Vec::new(),
    }
}

#[test]
fn a_whole_recipe_is_read_with_its_defaults() {
    let recipe = valid(VALID, &[]);
    assert_eq!(recipe.seed, 7);
    assert_eq!(recipe.student.window.map(|window| window.size), Some(64));
    assert_eq!(recipe.student.keep_softmax, KeepSoftmax::Layers(vec![0, 5]));
    assert_eq!((recipe.export.shard, recipe.export.dtype), (5_000_000_000, None));
    let kinds: Vec<&str> = recipe.stages.iter().map(|stage| stage.kind()).collect();
    assert_eq!(kinds, ["attention-transfer", "lora", "merge", "evaluate"]);
    let transfer: &AttentionTransfer = recipe.stages[0].downcast_ref().unwrap();
    assert_eq!((transfer.tokens, transfer.loss.output, transfer.loss.weights), (600_000, 1000.0, 0.0));
    let plateau = ScheduleKind::Plateau { factor: 0.1, patience: 10, min_lr: 1e-5, every: 100 };
    assert_eq!((transfer.training.schedule.kind, transfer.training.schedule.warmup), (plateau, 0));
    let optimizer = transfer.training.optimizer;
    assert_eq!((optimizer.lr, optimizer.betas, optimizer.eps), (1e-2, [0.9, 0.999], 1e-8));
    assert_eq!((optimizer.weight_decay, optimizer.clip), (0.0, None));
    assert_eq!(transfer.training.batch.step_tokens(512), 8 * 512);
    let lora: &Lora = recipe.stages[1].downcast_ref().unwrap();
    assert_eq!((lora.tokens, lora.training.optimizer.lr), (300_000, 1e-4));
    assert_eq!((lora.lora.rank, lora.lora.alpha), (8, 16.0));
    assert_eq!(lora.lora.on, [Target::Q, Target::K, Target::V, Target::O]);
    assert!(!lora.train_mixer && !lora.recompute);
    let evaluate: &Evaluate = recipe.stages[3].downcast_ref().unwrap();
    assert_eq!((evaluate.tokens, evaluate.sequence), (None, None));
}

/// The first stage of a recipe that begins with attention transfer.
fn transfer(recipe: &Recipe) -> &AttentionTransfer {
    recipe.stages[0].downcast_ref().unwrap()
}

#[test]
fn amounts_forms_and_options_are_read() {
    for (written, tokens) in [("\"6M\"", 6_000_000), ("\"250K\"", 250_000), ("\"1.5B\"", 1_500_000_000), ("5000", 5000)]
    {
        let recipe = valid(&VALID.replace("\"600K\"", written), &[]);
        assert_eq!(transfer(&recipe).tokens, tokens, "{written}");
    }
    for (written, bytes) in [("\"2GiB\"", 2u64 << 30), ("\"1.5GB\"", 1_500_000_000), ("\"700KB\"", 700_000), ("9", 9)] {
        let recipe = valid(&format!("{VALID}[export]\nshard = {written}\ndtype = \"bf16\"\n"), &[]);
        assert_eq!(recipe.export.shard, bytes, "{written}");
        assert_eq!(recipe.export.dtype.map(candle_core::DType::from), Some(candle_core::DType::BF16));
    }
    let recipe = valid(&VALID.replace("[0, 5]", "{ every = 4 }\ninit = \"kaiming\"\nfeature_width = 32"), &[]);
    assert_eq!(recipe.student.keep_softmax.of(12), [3, 7, 11]);
    assert_eq!(Value::Object(recipe.student.options).to_string(), r#"{"feature_width":32,"init":"kaiming"}"#);
    // Sub-tables under headers of their own, Windows line ends, and a byte order mark.
    let tables = VALID.replace("\"600K\"", "\"600K\"\n[stage.schedule]\nkind = \"cosine\"");
    let recipe = valid(&format!("\u{feff}{}", tables.replace('\n', "\r\n")), &[]);
    assert_eq!(transfer(&recipe).training.schedule.kind, ScheduleKind::Cosine { min_lr: 0.0 });
}

#[test]
fn sets_override_the_text_and_are_checked_like_it() {
    let sets = [
        "stage.0.tokens=1M",
        "stage.0.schedule.kind=cosine",
        "data.source=1984",
        "student.keep_softmax=[1]",
        "stage.1.lora.on=[\"q\"]",
        "export.shard = 1GB",
        "seed=1",
        "seed=2",
    ];
    let recipe = valid(VALID, &sets);
    assert_eq!(recipe.sets, sets);
    assert_eq!((recipe.seed, recipe.export.shard, recipe.data.source.as_str()), (2, 1_000_000_000, "1984"));
    assert_eq!(recipe.student.keep_softmax, KeepSoftmax::Layers(vec![1]));
    let AttentionTransfer { tokens, training, .. } = transfer(&recipe);
    assert_eq!((*tokens, training.schedule.kind), (1_000_000, ScheduleKind::Cosine { min_lr: 0.0 }));
    let wrong = [
        "stage.9.tokens=1M",
        "seed",
        "seed=",
        "a..b=1",
        "seed.x=3",
        "student.keep_softmax=[1,",
        "stage.0.tokens=1X",
        "stage.0.optimizer.lr=5",
        "stage.0.tokns=1M",
        "data=3",
    ];
    assert_eq!(
        errors(VALID, &wrong),
        [
            "0:0+0 `--set stage.9.tokens=1M`: there is no `stage.9` | `stage` has 4 items, numbers 0 to 3",
            "0:0+0 `--set seed`: KEY=VALUE is expected | for example `--set stage.0.tokens=1M`",
            "0:0+0 `--set seed=`: the value is missing | for example `--set stage.0.tokens=1M`",
            "0:0+0 `--set a..b=1`: this is not a dotted key | for example `--set stage.0.tokens=1M`",
            "0:0+0 `--set seed.x=3`: `seed` is a whole number, it holds no `x` | -",
            "0:0+0 `--set student.keep_softmax=[1,`: the value is not valid TOML: unclosed array, expected `]` | -",
            "0:0+0 `--set data=3`: `data` must be a table, not a whole number | write `data = { ... }` or `[data]`",
            "0:0+0 `--set stage.0.tokens=1X`: `stage.0.tokens` cannot be \"1X\" | a number of tokens such as \"6M\" or a whole number",
            "0:0+0 `--set stage.0.optimizer.lr=5`: `stage.0.optimizer.lr` cannot be 5.0 | above 0 and at most 1",
            "0:0+0 `--set stage.0.tokns=1M`: unknown key `stage.0.tokns` | did you mean `tokens`? known here: `kind`, `tokens`, `loss`, `optimizer`, `schedule`, `batch`, `checkpoint`",
        ]
    );
}

#[test]
fn later_errors_find_their_place() {
    let place = |sets: &[&str], path: &str| match valid(VALID, sets).error_at(path, "what", "hint") {
        Error::Recipe { diagnostics, .. } => (position(VALID, &diagnostics[0]), diagnostics[0].what.clone()),
        other => panic!("{other:?}"),
    };
    assert_eq!(place(&[], "student.keep_softmax.1"), ((7, 20, 1), "what".into()));
    assert_eq!(place(&[], "stage.1.lora.rank"), ((14, 1, 9), "what".into()));
    assert_eq!(place(&["data.sequence=128"], "data.sequence"), ((0, 0, 0), "`--set data.sequence=128`: what".into()));
}

#[test]
fn embedded_recipes_are_valid_and_introduce_themselves() {
    for (name, text) in EMBEDDED {
        let recipe = Recipe::load(name, &[]).unwrap_or_else(|error| panic!("{}", render(&error, false)));
        assert_eq!((recipe.text.as_str(), &recipe.base), (*text, &None));
        assert!(text.starts_with("#:schema ./schema.json\n"), "{name}");
        assert!(text.contains(&format!("convert recipes/{name}.toml")), "{name}");
        assert!(text.contains("# hardware: ") && text.contains("# expected: "), "{name}");
        assert!(description(text).len() > 20, "{name}");
        let schema: Value = serde_json::from_str(&subquad::recipe::schema()).unwrap();
        let data: Value = serde_json::to_value(toml::from_str::<toml::Table>(text).unwrap()).unwrap();
        assert_eq!(schema::violations(&schema, &data, name), Vec::<String>::new());
    }
}

#[test]
fn a_path_wins_over_an_embedded_name_and_a_missing_one_names_both() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(path("mine.toml"), VALID).unwrap();
    let recipe = Recipe::load(&path("mine.toml"), &["seed=3".into()]).unwrap();
    assert_eq!((recipe.base.as_deref(), recipe.seed), (Some(folder.path()), 3));
    let refused = |argument: &str| match Recipe::load(argument, &[]) {
        Err(error @ Error::File { .. }) => {
            assert_eq!(error.exit_code(), 1);
            (error.to_string(), error.hint().unwrap_or_default())
        }
        other => panic!("{other:?}"),
    };
    let (what, hint) = refused("quickstrat");
    assert_eq!(what, "quickstrat: there is no such file, and no embedded recipe of that name");
    assert!(hint.starts_with("did you mean `quickstart`? embedded: `smoke`, `quickstart`, `lolcats`"), "{hint}");
    assert!(refused(&path("mien.toml")).1.starts_with(&format!("did you mean `{}`?", path("mine.toml"))));
    assert!(refused(&path("")).0.ends_with("this is a folder, not a recipe"));
    std::fs::write(path("binary"), [0xff, 0xfe, 0]).unwrap();
    assert!(refused(&path("binary")).0.ends_with("this is not UTF-8 text"));
    std::fs::write(path("large"), vec![b'\n'; 1 << 20]).unwrap();
    assert!(refused(&path("large")).0.contains("too many for a recipe"));
}
