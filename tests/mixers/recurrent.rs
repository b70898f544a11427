//! Chunked = recurrent = step, the state cut anywhere: at every length, width, grouping and option.

use super::common::largest;
use super::{Case, Layer, TOLERANCE, all, few, layer_dims, options, tolerance};
use subquad::mixer::{MIXERS, State};

#[test]
fn chunked_is_recurrent_wherever_it_is_cut() {
    for (m, window) in all() {
        for layer in [0, 3] {
            let layer_dims = layer_dims(4, 2, 8, layer);
            Case::new(m, layer_dims, window).agrees(
                &Layer::new(layer_dims, 2, 90),
                &[1, 15, 17, 63, 64, 65, 89],
                TOLERANCE,
            );
        }
    }
}

#[test]
fn odd_lengths() {
    let layer_dims = layer_dims(4, 2, 8, 2);
    for (m, window) in few() {
        let case = Case::new(m, layer_dims, window);
        for (tokens, cuts) in [(1, &[][..]), (2, &[1]), (63, &[31]), (65, &[64]), (200, &[1, 63, 127, 129, 199])] {
            case.agrees(&Layer::new(layer_dims, 1, tokens), cuts, TOLERANCE);
        }
    }
}

#[test]
fn every_width() {
    for (m, window) in few() {
        for width in [2, 6, 16, 20, 32, 64, 80, 128] {
            let layer_dims = layer_dims(2, 1, width, 2);
            let tokens = if width > 32 { 19 } else { 67 };
            Case::new(m, layer_dims, window).agrees(&Layer::new(layer_dims, 1, tokens), &[tokens / 2], tolerance(m));
        }
    }
}

#[test]
fn every_grouping_of_heads() {
    for (m, window) in few() {
        for (heads, kv_heads) in [(1, 1), (4, 4), (4, 1), (6, 2), (3, 1)] {
            let layer_dims = layer_dims(heads, kv_heads, 8, 2);
            Case::new(m, layer_dims, window).agrees(&Layer::new(layer_dims, 2, 67), &[33], TOLERANCE);
        }
    }
}

#[test]
fn every_option() {
    let layer_dims = layer_dims(4, 2, 8, 1);
    for m in MIXERS {
        for options in options(m) {
            Case::with(m, &options, layer_dims, None).agrees(&Layer::new(layer_dims, 2, 67), &[33], TOLERANCE);
        }
    }
}

/// A fork goes its own way and leaves the original alone.
#[test]
fn forks() {
    let layer_dims = layer_dims(4, 2, 8, 1);
    for (m, window) in few() {
        let (case, x) = (Case::new(m, layer_dims, window), Layer::new(layer_dims, 2, 20));
        let mut state = State::default();
        case.mix(&x.part(0, 19), Some(&mut state));
        let (before, mut fork) = (state.fork().unwrap(), state.fork().unwrap());
        case.mixer.step(&x.part(19, 1), &case.params(), &mut fork).unwrap();
        for (name, tensor) in &state.tensors {
            assert_eq!(largest(tensor, &before.tensors[name]), 0.0, "{}: fork changed {name}", case.what);
        }
        let next = |state: &mut State| case.mixer.step(&x.part(19, 1), &case.params(), state).unwrap();
        assert_eq!(largest(&next(&mut state), &next(&mut { before })), 0.0, "{}", case.what);
    }
}
