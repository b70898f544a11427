//! The tables of a recipe, one function each: keys, types, defaults, help, and what cannot go together.
//!
//! Defaults of training are those of LoLCATs (arXiv 2410.10254, HazyResearch/lolcats at 375df84) unless the help
//! says otherwise.

use serde_json::Map;

use super::types::{Combine, Data, Dtype, Export, KeepSoftmax, StageRecipe, Student, Teacher, Window};
use super::values::{BYTES, KeepLayers, MixerOption};
use crate::config::{Choice, Form, Integer, Table, Text};
use crate::mixer::{MIXERS, Registration};
use crate::stage::api::MAX_SEQUENCE;

/// What the text of a recipe says.
pub(super) struct Body {
    pub seed: u64,
    pub teacher: Teacher,
    pub student: Student,
    pub data: Data,
    pub stages: Vec<Option<StageRecipe>>,
    pub export: Export,
}

/// The whole recipe.
pub(super) fn recipe(t: &mut Table) -> Body {
    // Whole numbers up to 2^53 - 1 survive every JSON reader.
    let seed = Integer { min: 0, max: (1 << 53) - 1 };
    let seed = t.optional("seed", seed, 0, "Seeds initial values and the order of the data.");
    let teacher = t.required_table(
        "teacher",
        "model = \"builtin:books-llama-7m\"",
        "The model to convert. It is never changed.",
        teacher,
    );
    let before = t.errors();
    let student = t.required_table("student", "mixer = \"hedgehog\"", "What attention becomes.", student);
    let data = t.required_table(
        "data",
        "source = \"builtin:books-train\"",
        "What the stages train on. The text is tokenised once and cut into consecutive windows; their order is a \
         permutation drawn from `seed`, a new one for each pass over the text.",
        data,
    );
    let sequence = (t.errors() == before && data.sequence > 0).then_some(data.sequence);
    if let (Some(sequence), Some(window)) = (sequence, &student.window)
        && window.size >= sequence
    {
        let what = format!(
            "a window of {} keys covers the whole training window of {sequence} tokens: the mixer would not learn",
            window.size
        );
        t.wrong_at("student.window.size", what, "make `student.window.size` smaller or `data.sequence` larger");
    }
    let stages = t.tables("stage", "kind = \"attention-transfer\"", "What is done, in this order.", |t: &mut Table| {
        StageRecipe::read(t, sequence)
    });
    let export = t.table("export", "How the converted model is written.", export);
    refuse_early_merge(t, &stages);
    Body { seed, teacher, student, data, stages, export }
}

fn teacher(t: &mut Table) -> Teacher {
    let model = t.required(
        "model",
        Text { example: "builtin:books-llama-7m" },
        "\"builtin:books-llama-7m\"",
        "A folder with config.json, safetensors and tokenizer.json, from the recipe's own folder on; or \
         `builtin:NAME`, a model inside the binary.",
    );
    Teacher { model }
}

impl Form for Registration {
    fn name(&self) -> &'static str {
        self.name
    }

    fn about(&self) -> &'static str {
        self.summary
    }
}

fn student(t: &mut Table) -> Student {
    let mixer = t.variant("mixer", MIXERS, None, "The mechanism that replaces softmax attention.");
    let mut options = Map::new();
    for option in mixer.map_or(&[][..], |mixer| mixer.options) {
        let help = format!("{} Default: {}.", sentence(option.help), option.default);
        if let Some(value) = t.maybe(option.name, MixerOption(option), &help) {
            options.insert(option.name.into(), value);
        }
    }
    let combine = mixer.map_or(Combine::ALL, |mixer| mixer.combine);
    Student {
        mixer: mixer.map(|mixer| mixer.name).unwrap_or_default().into(),
        options,
        window: t.maybe_table(
            "window",
            "Exact softmax over the last keys, beside the mixer. Absent: the mixer alone. LoLCATs' window is 64.",
            |t: &mut Table| window(t, combine),
        ),
        keep_softmax: t.optional(
            "keep_softmax",
            KeepLayers,
            KeepSoftmax::default(),
            "Layers (from 0) that keep softmax attention and are not trained in attention transfer: a list, or \
             `{ every = 4 }` for the last of every four.",
        ),
    }
}

/// Ends with a full stop, whatever the mixer's table has.
fn sentence(help: &str) -> String {
    format!("{}.", help.trim_end_matches('.'))
}

/// `combine`: what the mixer allows, its default first.
fn window(t: &mut Table, combine: &[Combine]) -> Window {
    Window {
        size: t.required(
            "size",
            Integer { min: 1, max: MAX_SEQUENCE },
            "64",
            "Keys that softmax sees, the current one included. No window at all: leave the table out.",
        ),
        combine: t.optional(
            "combine",
            Choice(combine.iter().map(|c| (c.name(), *c)).collect()),
            combine[0],
            "How window and mixer become one output. `joint`: one normaliser over both, with a learned factor per head \
             that starts at a mixing weight of 0.1, the mixer seeing what the window does not (LoLCATs; kernels only). \
             `fixed`: half and half (Liger). `learned`: a share per head that starts at one half. Absent: the mixer's \
             own.",
        ),
        sinks: t.optional(
            "sinks",
            Integer { min: 0, max: MAX_SEQUENCE },
            0,
            "First tokens of the text that every query sees besides (StreamingLLM pins 4).",
        ),
    }
}

fn data(t: &mut Table) -> Data {
    Data {
        source: t.required(
            "source",
            Text { example: "builtin:books-train" },
            "\"builtin:books-train\"",
            "A .txt or .jsonl file or a folder of them, from the recipe's own folder on; or `builtin:NAME`, a text \
             inside the binary.",
        ),
        sequence: t.optional(
            "sequence",
            Integer { min: 2, max: MAX_SEQUENCE },
            1024,
            "Tokens of one training window (LoLCATs packs to 1024).",
        ),
    }
}

fn export(t: &mut Table) -> Export {
    Export {
        shard: t.optional(
            "shard",
            BYTES,
            5_000_000_000,
            "Largest size of one safetensors file. A tensor is never cut: one that is larger has its own file. \
             5GB is what Hugging Face writes.",
        ),
        dtype: t.maybe(
            "dtype",
            Choice(vec![("f32", Dtype::F32), ("bf16", Dtype::Bf16), ("f16", Dtype::F16)]),
            "Number format of the weights. Absent: as in the teacher.",
        ),
    }
}

/// A merge folds LoRA updates into the weights; without one before it there is nothing to fold.
fn refuse_early_merge(t: &mut Table, stages: &[Option<StageRecipe>]) {
    let mut adapted = false;
    for (index, stage) in stages.iter().enumerate() {
        // After an error in its kind the stage may have been meant as one that leaves an adapter.
        let Some(stage) = stage else { return };
        let needs = stage.needs();
        if needs.merges && !adapted {
            let what = format!("`stage.{index}` merges, but no `lora` stage before it left anything to merge");
            t.wrong_at(&format!("stage.{index}.kind"), what, "put it after a stage with `kind = \"lora\"`");
        }
        adapted = needs.adapter.is_some() || adapted && !needs.merges;
    }
}
