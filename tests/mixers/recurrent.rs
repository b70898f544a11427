//! Chunked = recurrent = step, the state cut anywhere: at every length, width, grouping and option.

use super::common::largest;
use super::{Case, Layer, TOLERANCE, all, few, options, site, tolerance};
use subquad::mixer::{MIXERS, State};

#[test]
fn chunked_is_recurrent_wherever_it_is_cut() {
    for (m, window) in all() {
        for layer in [0, 3] {
            let site = site(4, 2, 8, layer);
            Case::new(m, site, window).agrees(&Layer::new(site, 2, 90), &[1, 15, 17, 63, 64, 65, 89], TOLERANCE);
        }
    }
}

#[test]
fn odd_lengths() {
    let site = site(4, 2, 8, 2);
    for (m, window) in few() {
        let case = Case::new(m, site, window);
        for (tokens, cuts) in [(1, &[][..]), (2, &[1]), (63, &[31]), (65, &[64]), (200, &[1, 63, 127, 129, 199])] {
            case.agrees(&Layer::new(site, 1, tokens), cuts, TOLERANCE);
        }
    }
}

#[test]
fn every_width() {
    for (m, window) in few() {
        for width in [2, 6, 16, 20, 32, 64, 80, 128] {
            let site = site(2, 1, width, 2);
            let tokens = if width > 32 { 19 } else { 67 };
            Case::new(m, site, window).agrees(&Layer::new(site, 1, tokens), &[tokens / 2], tolerance(m));
        }
    }
}

#[test]
fn every_grouping_of_heads() {
    for (m, window) in few() {
        for (heads, kv_heads) in [(1, 1), (4, 4), (4, 1), (6, 2), (3, 1)] {
            let site = site(heads, kv_heads, 8, 2);
            Case::new(m, site, window).agrees(&Layer::new(site, 2, 67), &[33], TOLERANCE);
        }
    }
}

#[test]
fn every_option() {
    let site = site(4, 2, 8, 1);
    for m in MIXERS {
        for options in options(m) {
            Case::with(m, &options, site, None).agrees(&Layer::new(site, 2, 67), &[33], TOLERANCE);
        }
    }
}

/// A fork goes its own way and leaves the original alone.
#[test]
fn forks() {
    let site = site(4, 2, 8, 1);
    for (m, window) in few() {
        let (case, x) = (Case::new(m, site, window), Layer::new(site, 2, 20));
        let mut state = State::default();
        case.mix(&x.part(0, 19), Some(&mut state));
        let (before, mut fork) = (state.fork().unwrap(), state.fork().unwrap());
        case.mixer.step(&x.part(19, 1), &case.bound(), &mut fork).unwrap();
        for (name, tensor) in &state.tensors {
            assert_eq!(largest(tensor, &before.tensors[name]), 0.0, "{}: fork changed {name}", case.what);
        }
        let next = |state: &mut State| case.mixer.step(&x.part(19, 1), &case.bound(), state).unwrap();
        assert_eq!(largest(&next(&mut state), &next(&mut { before })), 0.0, "{}", case.what);
    }
}
