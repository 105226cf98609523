//! Ctrl-C.

use std::io::{self, Read as _};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, exit};
use std::thread;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::low_level::pipe;

/// Waits until no child is left, 30 s at most: the lab's pid 1 cleans up as soon as whoever started it has gone.
const REST: &str = r#"
echo "interrupted: the lab is being removed"
tries=0
while [ $tries -lt 300 ]; do
    children=
    # It has no end of line, which read takes for a failure.
    read -r children <"/proc/$$/task/$$/children" || :
    [ -n "$children" ] || break
    tries=$((tries + 1))
    sleep 0.1
done
exit 130
"#;

/// From now on Ctrl-C (or SIGTERM) ends the demo from wherever it is: this process becomes a shell, which closes the
/// lab's pipe as any end would, and stays until the lab is gone.
///
/// # Errors
/// The kernel's.
pub(crate) fn end_with_ctrl_c() -> io::Result<()> {
    let (mut heard, told) = UnixStream::pair()?;
    for signal in [SIGINT, SIGTERM] {
        pipe::register(signal, told.try_clone()?)?;
    }
    thread::spawn(move || {
        if heard.read_exact(&mut [0]).is_ok() {
            let error = Command::new("sh").args(["-c", REST]).exec();
            eprintln!("no shell: {error}");
            exit(1);
        }
    });
    Ok(())
}
