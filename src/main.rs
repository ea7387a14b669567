//! The program: everything is in the library.

fn main() -> std::process::ExitCode {
    tailherd::cli::main()
}
