pub mod cli;
pub mod identity;
pub mod mesh;
