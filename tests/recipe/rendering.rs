//! Errors as users see them.

use subquad::error::Error;
use subquad::recipe::render;

use super::{VALID, parse, with_mixers};

#[test]
fn errors_are_rendered_with_line_caret_and_hint() {
    let text = VALID.replace("mixer = \"hedgehog\"", "\tmixer = \"日本\"").replace("\"600K\"", "\"600k\"");
    let error = parse(&text, &["seed=x"]).unwrap_err();
    let expected = r#"error: test.toml: 3 errors

`student.mixer` is unknown: `日本`
 --> test.toml:5:10
  |
5 |     mixer = "日本"
  |             ^^^^^^
  |
  = help: there is: {mixers}

`stage.0.tokens` cannot be "600k"
  --> test.toml:13:10
   |
13 | tokens = "600k"
   |          ^^^^^^
   |
   = help: did you mean "600K"?

`--set seed=x`: `seed` must be a whole number, not a string
 |
 = help: for example 0

hint: `subquad recipes show quickstart` prints a recipe with every common key
"#;
    let expected = with_mixers(expected);
    assert_eq!(render(&error, false), expected);
    let colored = render(&error, true);
    assert_ne!(colored, expected);
    let codes = regex::Regex::new("\u{1b}\\[[0-9;]*m").unwrap();
    assert_eq!(codes.replace_all(&colored, ""), expected);
    let one = parse(&VALID.replace("seed = 7", "sed = 7"), &[]).unwrap_err();
    assert_eq!(one.to_string(), "test.toml: 1 error");
    let other = Error::usage("`--device tpu` is unknown", "cpu or cuda");
    assert_eq!(render(&other, false), "error: `--device tpu` is unknown\n\nhint: cpu or cuda\n");
}

#[test]
fn long_lines_and_control_characters_are_rendered_safely() {
    let long = format!("model = \"x\" # {}\nmodle = 1", "y".repeat(500));
    let keys = (0..60).map(|i| format!("key_{i} = {i}")).collect::<Vec<_>>().join(", ");
    let long = long.replace("modle = 1", &format!("modle = {{ {keys} }}"));
    let text = VALID.replace("model = \"builtin:books-llama-7m\"", &long);
    let text = text.replace("size = 64", "size = \"\\u0007\"").replace("joint", "\u{202e}tnioj");
    let wide = format!("{}{}", " ".repeat(300), "zero = 0");
    let text = text.replace("[data]", &format!("[data]\n{wide} # {}", "日".repeat(200)));
    let rendered = render(&parse(&text, &[]).unwrap_err(), false);
    assert!(!rendered.contains(['\u{7}', '\u{202e}', '\u{1b}']), "{rendered}");
    for line in rendered.lines().filter(|line| line.contains(" | ")) {
        assert!(unicode_width::UnicodeWidthStr::width(line) <= 100, "{line}");
    }
    let at = rendered.find("zero = 0").expect("the window follows the caret");
    let line = rendered[..at].rfind('\n').map_or(0, |newline| newline + 1);
    let column = rendered[line..at].chars().count();
    let caret = rendered[at..].lines().nth(1).and_then(|line| line.find('^'));
    assert_eq!(caret, Some(column), "{rendered}");
}
