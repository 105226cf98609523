//! `rbd-guardian`: see `rbd-guardian --help`.

fn main() -> std::process::ExitCode {
    rbd_guardian::cli::main()
}
