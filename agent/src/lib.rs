pub mod cli;
pub mod hbone;
pub mod identity;
pub mod mesh;
