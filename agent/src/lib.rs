pub mod control;
pub mod mesh;
