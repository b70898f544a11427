//! Operators that act on every token by itself.

pub mod adamw;
pub mod blend;
pub mod broadcast;
pub mod elementwise;
pub mod experts;
pub mod feature_map;
pub mod head;
pub mod head_linear;
pub mod linear;
pub mod map;
pub mod norm;
pub mod polynomial;
pub mod quotient;
pub mod rope;
pub mod row_max;
pub mod shape;
pub mod softmax;
pub mod stabilise;
pub mod statistics;
