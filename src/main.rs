//! The program. All of it is in the library beside it, so that the fuzz targets reach what reads the input of strangers.

use std::process::ExitCode;

fn main() -> ExitCode {
    djangocommand::main()
}
