//! Sources, tokenizer and windows: what they give, and what they say about bad input.

use std::fs;
use std::path::{Path, PathBuf};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde_json::{Value, json};
use subquad::checkpoint::{Builtin, Files, Location};
use subquad::text::{Tokenizer, Windows, documents, tokenize};
use subquad::{Error, Result};

fn asset(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets").join(name)
}

fn open(folder: &Path, vocab: usize, eos: Option<u32>) -> Result<Tokenizer> {
    Tokenizer::open(&Files::open(&Location::Path(folder.into()))?, vocab, eos)
}

fn stories() -> Tokenizer {
    open(&asset("stories260K"), 512, Some(2)).unwrap()
}

fn books() -> Tokenizer {
    open(&asset("books-llama-7m"), 8192, Some(0)).unwrap()
}

fn text_of(name: &str) -> Vec<String> {
    documents(&Location::Path(asset("text").join(name))).unwrap()
}

/// Documents of one file with these contents.
fn documents_of(name: &str, contents: &[u8]) -> Result<Vec<String>> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, contents).unwrap();
    documents(&Location::Path(path))
}

/// The message of an error that is the user's to mend and says how.
fn message<T>(result: Result<T>) -> String {
    let error = result.err().expect("an error");
    assert_eq!(error.exit_code(), 1, "{error}");
    assert!(error.hint().is_some(), "no hint: {error}");
    error.to_string()
}

fn quiet(documents: &[String], tokenizer: &Tokenizer, limit: Option<usize>) -> Vec<u32> {
    tokenize(documents, tokenizer, limit, &mut |_| {}).unwrap()
}

/// A tokenizer.json of the books vocabulary, changed.
fn changed_books(change: impl FnOnce(&mut Value)) -> tempfile::TempDir {
    let mut value: Value = serde_json::from_slice(&fs::read(asset("books-llama-7m/tokenizer.json")).unwrap()).unwrap();
    change(&mut value);
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("tokenizer.json"), value.to_string()).unwrap();
    folder
}

// Sources

#[test]
fn nul_bytes_separate_documents() {
    let given = documents_of("a.txt", b"\xef\xbb\xbfone\r\n\0 two\0\0 \n\0").unwrap();
    assert_eq!(given, ["one\r\n", " two"]);
    // Who names a file means it, whatever its extension.
    assert_eq!(documents_of("README", b"text").unwrap(), ["text"]);
}

#[test]
fn json_lines_have_a_text_each() {
    let given =
        documents_of("a.jsonl", b"{\"text\": \"one\\ntwo\", \"id\": 1}\r\n\n{\"text\": \"\"}\n{\"text\": \"three\"}")
            .unwrap();
    assert_eq!(given, ["one\ntwo", "three"]);

    let said = message(documents_of("a.jsonl", b"{\"text\": \"one\"}\n\n{\"content\": \"two\"}\n"));
    assert!(said.contains("line 3") && said.contains("content"), "{said}");
    let said = message(documents_of("a.jsonl", b"{\"text\": 7}"));
    assert!(said.contains("line 1") && said.contains("not a string"), "{said}");
    let said = message(documents_of("a.jsonl", b"{\"text\": \"one\"}\n{\"text\": \"tw"));
    assert!(said.contains("line 2") && said.contains("not a JSON object"), "{said}");
    assert!(message(documents_of("a.jsonl", b"[1]")).contains("line 1"));
}

#[test]
fn a_folder_gives_its_texts_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    fs::create_dir(folder.path().join("deeper.txt")).unwrap();
    write("b.txt", "2\x003");
    write("c.jsonl", "{\"text\": \"4\"}");
    write("A.TXT", "1");
    write("config.json", "{}");
    assert_eq!(documents(&Location::Path(folder.path().into())).unwrap(), ["1", "2", "3", "4"]);
}

#[test]
fn embedded_texts_are_sources() {
    static TEXT: Builtin = Builtin { name: "some", files: &[("some.txt", b"one\0two")] };
    static MODEL: Builtin = Builtin { name: "model", files: &[("config.json", b"{}")] };
    assert_eq!(documents(&Location::Builtin(&TEXT)).unwrap(), ["one", "two"]);
    assert!(message(documents(&Location::Builtin(&MODEL))).contains("builtin:model"));
}

#[test]
fn unusable_sources_say_why() {
    assert!(message(documents_of("a.txt", b"")).contains("no text"));
    assert!(message(documents_of("a.txt", b" \n\0\n")).contains("no text"));
    let said = message(documents_of("a.txt", b"good\nb\xffd"));
    assert!(said.contains("byte 6") && said.contains("line 2"), "{said}");
    assert!(message(documents_of("a.jsonl", b"{\"text\": \"\xe2\x80\"}")).contains("byte 10"));
    assert!(message(documents_of("a.parquet", b"PAR1")).contains(".parquet"));

    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), "{}").unwrap();
    assert!(message(documents(&Location::Path(folder.path().into()))).contains("without texts"));
    let missing = documents(&Location::Path(folder.path().join("missing.txt")));
    assert!(matches!(missing, Err(Error::Io { .. })));
}

#[test]
fn embedded_assets_are_whole_documents() {
    let train = text_of("books-train.txt");
    assert_eq!(train.len(), 32);
    assert!(train[0].starts_with("The Book of Tea\n\nOkakura Kakuzo\n\n1906\n\n"));
    assert_eq!(text_of("books-valid.txt").len(), 5);
    assert!(train.iter().all(|book| !text_of("books-valid.txt").contains(book)));
    let (stories, later) = (text_of("tinystories.txt"), text_of("tinystories-valid.txt"));
    assert_eq!((stories.len(), later.len()), (498, 80));
    assert!(stories.iter().all(|story| !story.contains("endoftext") && !later.contains(story)));
}

// Tokenizer

#[test]
fn ids_equal_those_of_the_python_package() {
    for (name, tokenizer) in [("stories260K", stories()), ("books-llama-7m", books())] {
        let path = format!("{}/tests/fixtures/tokenizer_{name}.json", env!("CARGO_MANIFEST_DIR"));
        let cases: Vec<Value> = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        for case in &cases {
            let text = case["text"].as_str().unwrap();
            let ids = tokenizer.encode(text).unwrap();
            assert_eq!(json!(ids), case["ids"], "{name}: {text}");
            assert_eq!(json!(tokenizer.decode(&ids).unwrap()), case["decoded"], "{name}: {text}");
        }
    }
}

#[test]
fn unusable_tokenizers_say_why() {
    let folder = tempfile::tempdir().unwrap();
    assert!(message(open(folder.path(), 512, None)).contains("no tokenizer.json"));

    let whole = fs::read(asset("stories260K/tokenizer.json")).unwrap();
    for damaged in
        [&whole[..whole.len() / 2], b"", b"{}", b"\xff\xfe", b"{\"version\":\"1.0\",\"model\":{\"type\":\"BPE\"}}"]
    {
        fs::write(folder.path().join("tokenizer.json"), damaged).unwrap();
        message(open(folder.path(), 512, None));
    }
    fs::write(folder.path().join("tokenizer.json"), &whole[..100]).unwrap();
    assert!(message(open(folder.path(), 512, None)).contains("cannot be read"));

    let said = message(open(&asset("stories260K"), 511, Some(2)));
    assert!(said.contains("does not match the vocabulary") && said.contains("511"), "{said}");
    assert!(message(open(&asset("stories260K"), 0, None)).contains("does not match"));
    assert!(message(open(&asset("stories260K"), 1024, Some(600))).contains("600"));
    // A model may have more rows than its tokenizer has ids: vocabularies are padded.
    open(&asset("stories260K"), 1024, Some(2)).unwrap();
}

#[test]
fn truncation_and_padding_of_the_file_do_not_apply() {
    let folder = changed_books(|json| {
        json["truncation"] = json!({"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0});
        json["padding"] = json!({"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>"});
    });
    let changed = open(folder.path(), 8192, Some(0)).unwrap();
    for text in ["One", "One two three four five six seven eight nine ten."] {
        assert_eq!(changed.encode(text).unwrap(), books().encode(text).unwrap());
    }
}

// Streaming decode

/// Decodes one token at a time and compares with the whole.
fn assert_streams(tokenizer: &Tokenizer, ids: &[u32]) {
    let mut decoder = tokenizer.decoder();
    let mut text = String::new();
    for &id in ids {
        text.push_str(&decoder.push(id).unwrap());
    }
    text.push_str(&decoder.finish().unwrap());
    assert_eq!(text, tokenizer.decode(ids).unwrap(), "{ids:?}");
}

#[test]
fn streamed_text_equals_the_whole() {
    let text = " Ærø – naïve 日本語 🦀🙂!\n\n  End \u{fffd} of \u{fffd}\u{fffd}";
    for tokenizer in [stories(), books()] {
        let ids = tokenizer.encode(text).unwrap();
        for start in 0..ids.len() {
            for end in start..=ids.len().min(start + 24) {
                assert_streams(&tokenizer, &ids[start..end]);
            }
        }
    }
}

#[test]
fn streamed_noise_equals_the_whole() {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    for (tokenizer, vocab) in [(stories(), 512), (books(), 8192)] {
        for round in 0..2000 {
            // Every other round is mostly single bytes: broken characters, runs of them, special tokens in between.
            let ids = if round % 2 == 0 { 300.min(vocab) } else { vocab + 10 };
            let ids: Vec<u32> = (0..round % 40).map(|_| random.next_u32() % ids).collect();
            assert_streams(&tokenizer, &ids);
        }
    }
}

#[test]
fn streaming_gives_words_as_they_come_and_no_half_characters() {
    let tokenizer = books();
    let mut decoder = tokenizer.decoder();
    let pieces: Vec<String> =
        tokenizer.encode("The old house 🦀 stood").unwrap().iter().map(|&id| decoder.push(id).unwrap()).collect();
    assert_eq!(pieces[..3], ["The", " old", " house"]);
    assert!(pieces.iter().all(|piece| !piece.contains('\u{fffd}')), "{pieces:?}");
    assert!(pieces.iter().any(|piece| piece.contains('🦀')), "{pieces:?}");
    assert_eq!(decoder.finish().unwrap(), "");
}

// Many documents

#[test]
fn documents_are_joined_by_the_end_of_text() {
    for tokenizer in [stories(), books()] {
        let texts = ["One day.", " Two", "Three\n"].map(String::from);
        let mut expected = tokenizer.encode(&texts[0]).unwrap();
        for text in &texts[1..] {
            expected.extend(tokenizer.eos());
            expected.extend(tokenizer.encode(text).unwrap());
        }
        assert_eq!(quiet(&texts, &tokenizer, None), expected);
        for limit in 0..=expected.len() + 1 {
            assert_eq!(quiet(&texts, &tokenizer, Some(limit)), expected[..limit.min(expected.len())]);
        }
    }
    let without = open(&asset("books-llama-7m"), 8192, None).unwrap();
    let texts = ["One", "Two"].map(String::from);
    assert_eq!(quiet(&texts, &without, None).len(), quiet(&texts, &books(), None).len() - 1);
    assert!(quiet(&[], &books(), None).is_empty());
}

/// Pre-tokenizers, and whether they are known to allow cuts after words.
fn pre_tokenizers() -> Vec<(bool, Value)> {
    let byte_level = |prefix: bool, regex: bool| json!({"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true, "use_regex": regex});
    let numbers = |numbers: &str| {
        let regex = format!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{numbers}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        );
        let split = json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
        json!({"type": "Sequence", "pretokenizers": [split, byte_level(false, false)]})
    };
    let digits = json!({"type": "Digits", "individual_digits": true});
    vec![
        (true, byte_level(false, true)),
        (true, json!({"type": "Sequence", "pretokenizers": [digits, byte_level(false, true)]})),
        (true, numbers(r"\p{N}{1,3}")),
        (true, numbers(r"\p{N}")),
        (false, byte_level(true, true)),
        (false, byte_level(false, false)),
    ]
}

#[test]
fn long_documents_encode_as_if_whole() {
    // Long enough for several parts; books, and text that is mostly edges.
    let mut random = ChaCha8Rng::seed_from_u64(2);
    let scraps = [
        "a", "Z", " ", "\n", "\r\n", "\t", "'s", "'", "1", "23", "é", "日", "\u{a0}", "\u{301}", ".", "--", "🙂", "ll",
    ];
    let noise: String = (0..200_000).map(|_| scraps[random.next_u32() as usize % scraps.len()]).collect();
    let book = text_of("books-valid.txt").swap_remove(1);
    let unbroken = "x".repeat(200_000);
    for (cut, pre_tokenizer) in pre_tokenizers() {
        let folder = changed_books(|json| json["pre_tokenizer"] = pre_tokenizer.clone());
        let tokenizer = open(folder.path(), 8192, Some(0)).unwrap();
        for text in [&noise, &book, &unbroken] {
            let whole = tokenizer.encode(text).unwrap();
            assert!(quiet(std::slice::from_ref(text), &tokenizer, None) == whole, "{pre_tokenizer}, {}", &text[..10]);
        }
        // A limit shows whether the book was cut.
        let mut done = 0;
        tokenize(std::slice::from_ref(&book), &tokenizer, Some(100), &mut |bytes| done = bytes).unwrap();
        assert_eq!(cut, done < book.len() as u64, "{pre_tokenizer}");
    }
}

#[test]
fn ids_do_not_depend_on_threads_and_progress_ends_at_all_bytes() {
    let mut texts = text_of("books-valid.txt");
    texts.extend(text_of("tinystories-valid.txt"));
    let bytes: usize = texts.iter().map(String::len).sum();
    for tokenizer in [stories(), books()] {
        let with = |threads: usize, limit: Option<usize>| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut reports = Vec::new();
            let ids = pool.install(|| tokenize(&texts, &tokenizer, limit, &mut |done| reports.push(done))).unwrap();
            (ids, reports)
        };
        let (ids, reports) = with(1, None);
        assert!(reports.is_sorted() && reports.last() == Some(&(bytes as u64)), "{reports:?}");
        assert!(with(5, None).0 == ids);
        assert!(with(3, Some(10_001)).0 == ids[..10_001]);
    }
}

#[test]
fn a_limit_spares_the_rest() {
    let texts = text_of("books-train.txt");
    let mut done = 0;
    let ids = tokenize(&texts, &books(), Some(4096), &mut |bytes| done = bytes).unwrap();
    assert_eq!(ids.len(), 4096);
    assert!(done < 400_000, "{done}");
}

// Windows

fn numbered(windows: u32, sequence: usize, tail: u32) -> Windows {
    let ids = (0..windows * sequence as u32 + tail).collect();
    Windows::new(ids, sequence, "numbers").unwrap()
}

/// Indices of the windows of a batch.
fn indices(batch: &[u32], sequence: usize) -> Vec<u32> {
    batch.chunks(sequence).map(|window| window[0] / sequence as u32).collect()
}

#[test]
fn windows_follow_each_other_and_drop_the_tail() {
    let windows = numbered(3, 4, 3);
    assert_eq!((windows.len(), windows.sequence(), windows.is_empty()), (3, 4, false));
    assert_eq!(windows.get(2), [8, 9, 10, 11]);
    let said = message(Windows::new(vec![1; 511], 512, "short.txt"));
    assert!(said.contains("511") && said.contains("512") && said.contains("short.txt"), "{said}");
    message(Windows::new(vec![], 512, "empty"));
    message(Windows::new(vec![1; 9], 1, "narrow"));
    message(Windows::new(vec![1; 9], 0, "none"));
}

#[test]
fn each_epoch_has_each_window_once() {
    let windows = numbered(23, 4, 1);
    for batch in [1, 3, 8, 23, 50] {
        // Steps chained end to end; batches cross from one epoch to the next.
        let steps = 0..(23 * 4 / batch as u64 + 1);
        let order: Vec<u32> = steps.flat_map(|step| indices(&windows.batch(7, step, batch), 4)).take(23 * 3).collect();
        let epochs: Vec<&[u32]> = order.chunks(23).collect();
        for epoch in &epochs {
            let mut sorted = epoch.to_vec();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..23).collect::<Vec<_>>());
        }
        assert!(epochs[0] != epochs[1] && epochs[1] != epochs[2]);
        // The order of the windows is the same, however they are cut into batches.
        assert_eq!(epochs[0], indices(&windows.batch(7, 0, 23), 4));
        assert_eq!(epochs[1], indices(&windows.batch(7, 1, 23), 4));
    }
}

#[test]
fn a_batch_is_a_function_of_seed_and_step() {
    let windows = numbered(64, 2, 0);
    assert_eq!(windows.batch(1, 5, 6), numbered(64, 2, 1).batch(1, 5, 6));
    assert_ne!(windows.batch(1, 5, 6), windows.batch(2, 5, 6));
    assert_ne!(windows.batch(1, 5, 6), windows.batch(1, 6, 6));
    assert_eq!(windows.batch(0, u64::MAX, 2).len(), 4);
    assert!(windows.batch(0, 3, 0).is_empty());
    // What a seed means must not change between releases: a run goes on from where an older one stopped.
    assert_eq!(indices(&numbered(8, 2, 0).batch(0, 0, 8), 2), [7, 3, 0, 5, 6, 4, 1, 2]);
}

#[test]
fn every_place_is_equally_likely() {
    let windows = numbered(5, 2, 0);
    let mut counts = [[0; 5]; 5];
    for epoch in 0..5000 {
        for (place, window) in indices(&windows.batch(3, epoch, 5), 2).into_iter().enumerate() {
            counts[place][window as usize] += 1;
        }
    }
    // 1000 expected, standard deviation 28.
    assert!(counts.iter().flatten().all(|count| (860..1140).contains(count)), "{counts:?}");
}

#[test]
fn spread_windows_come_from_all_over_the_text() {
    let windows = Windows::new((0..100).collect(), 10, "test").unwrap();
    let spread = windows.spread(45);
    let firsts: Vec<u32> = (0..spread.len()).map(|i| spread.get(i)[0]).collect();
    assert_eq!(firsts, [0, 20, 50, 70]);
    assert_eq!((windows.spread(1).len(), windows.spread(u64::MAX).len()), (1, 10));
}
