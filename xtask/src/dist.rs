//! `cargo xtask dist`: the Debian package, and a tarball of what is in it.

use std::{
    env, fs,
    io::Write as _,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    build::{target_dir, workspace},
    ci::cargo,
    run::{read, show, step},
    setup::{self, tool},
};

const CARGO_DEB: &str = "3.8.0";
const NAME: &str = "netspawn-xdp";
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Arguments of `cargo xtask dist`.
#[derive(clap::Args)]
pub struct Args {}

/// Builds the static program, the package and the tarball; prints where they are.
pub fn run(_args: Args) -> Result<()> {
    setup::ready()?;
    let folder = target_dir().join("dist");
    let program = program()?;
    let deb = folder.join(format!("{NAME}_{VERSION}_{}.deb", debian_arch()?));
    package(&fs::read(&program)?, VERSION, &deb, &[])?;
    let tarball = tarball(&deb)?;
    for path in [program, deb, tarball] {
        let bytes = fs::metadata(&path)?.len();
        println!("{bytes:>10} {}", path.display());
    }
    Ok(())
}

/// The packages that the suite `package` installs one after the other, made of the program
/// that the other suites run: `old.deb` and `new.deb` in the folder returned.
///
/// # Errors
/// When they cannot be made.
pub fn for_tests() -> Result<PathBuf> {
    let folder = target_dir().join("dist/tests");
    fs::create_dir_all(&folder)?;
    let stripped = folder.join(NAME);
    show(
        Command::new("strip")
            .arg("-o")
            .arg(&stripped)
            .arg(target_dir().join("debug").join(NAME)),
    )?;
    let mut program = fs::read(stripped)?;
    // In a tenth of the time.
    let fast = ["--fast", "--compress-system"];
    package(&program, VERSION, &folder.join("old.deb"), &fast)?;
    // Nobody reads what is behind the sections of a program, which is another all the same.
    program.extend_from_slice(b"new");
    let next = format!("{VERSION}+new");
    package(&program, &next, &folder.join("new.deb"), &fast)?;
    Ok(folder)
}

/// Builds the program that runs on any distribution of this architecture. It calls nothing
/// that glibc would load a library for at run time: no look-ups of users or host names.
fn program() -> Result<PathBuf> {
    step("building the static program");
    let triple = format!("{}-unknown-linux-gnu", env::consts::ARCH);
    let home = env::var("CARGO_HOME").map_or_else(
        |_| env::home_dir().unwrap_or_default().join(".cargo"),
        PathBuf::from,
    );
    let sysroot = read(Command::new("rustc").args(["--print", "sysroot"]))?;
    let flags = [
        "-Ctarget-feature=+crt-static".to_owned(),
        "-Cstrip=symbols".to_owned(),
        // What panics print does not depend on who has built it.
        format!("--remap-path-prefix={}=cargo", home.display()),
        format!("--remap-path-prefix={}=.", workspace().display()),
        format!("--remap-path-prefix={}=rust", sysroot.trim()),
    ];
    show(
        cargo()
            .args(["build", "--release", "--package", "netspawn-user"])
            // Flags are then for the program alone, not for build scripts.
            .args(["--target", &triple])
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f")),
    )?;
    let program = target_dir().join(triple).join("release").join(NAME);
    let interpreter = read(Command::new("readelf").arg("-lW").arg(&program))?;
    ensure!(
        !interpreter.contains("INTERP"),
        "{} is not static",
        program.display()
    );
    Ok(program)
}

/// Makes a package of a program; cargo-deb takes these options, too.
fn package(program: &[u8], version: &str, deb: &Path, options: &[&str]) -> Result<()> {
    let tool = tool::install("deb", CARGO_DEB)?;
    step(format_args!("packing {}", deb.display()));
    let stage = target_dir().join("dist/stage");
    if stage.exists() {
        fs::remove_dir_all(&stage)?;
    }
    fill(&stage.join("release"), program, version)?;
    let mut command = Command::new(tool);
    command
        .args(["deb", "--quiet", "--no-build", "--no-strip", "--no-dbgsym"])
        .args(["--package", "netspawn-user", "--deb-version", version])
        .args(options)
        .arg("--output")
        .arg(deb)
        .current_dir(workspace())
        .env("CARGO_TARGET_DIR", &stage);
    if let Some(time) = time() {
        command.env("SOURCE_DATE_EPOCH", time);
    }
    show(&mut command)
}

/// Puts what is made, not kept, where the package's list of files has it.
fn fill(folder: &Path, program: &[u8], version: &str) -> Result<()> {
    let path = folder.join(NAME);
    let completions = folder.join("completions");
    fs::create_dir_all(&completions)?;
    fs::write(&path, program)?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&path, mode)?;
    // As it is seen from /usr/lib/cni.
    symlink(
        Path::new("../../bin").join(NAME),
        folder.join("netspawn-cni"),
    )?;
    let pages = folder.join("man");
    show(Command::new(&path).args(["man", "--dir"]).arg(&pages))?;
    for page in fs::read_dir(&pages)? {
        let page = page?.path();
        fs::write(page.with_extension("1.gz"), gzip(&fs::read(&page)?)?)?;
    }
    for shell in ["bash", "zsh", "fish"] {
        let script = read(Command::new(&path).args(["completions", shell]))?;
        fs::write(completions.join(format!("{NAME}.{shell}")), script)?;
    }
    let date = read(
        Command::new("date")
            .args(["--utc", "--rfc-email", "--date"])
            .arg(time().map_or_else(|| "now".to_owned(), |time| format!("@{time}"))),
    )?;
    let changelog = format!(
        "{NAME} ({version}) unstable; urgency=medium\n\n  * Release {version}.\n\n \
         -- {NAME} <{NAME}@localhost>  {}\n",
        date.trim()
    );
    let packed = gzip(changelog.as_bytes())?;
    fs::write(folder.join("changelog.gz"), packed)?;
    Ok(())
}

/// Packs without a name and a time.
fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut child = Command::new("gzip")
        .args(["-9n"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start gzip")?;
    let mut stdin = child.stdin.take().context("gzip reads nothing")?;
    // Little enough for gzip to keep it until it ends.
    stdin.write_all(bytes)?;
    drop(stdin);
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "gzip ended with {}", output.status);
    Ok(output.stdout)
}

/// What the package installs, without its file in /etc, which would overwrite another.
fn tarball(deb: &Path) -> Result<PathBuf> {
    let folder = target_dir().join("dist/tree");
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    show(Command::new("dpkg-deb").arg("-x").arg(deb).arg(&folder))?;
    fs::remove_dir_all(folder.join("etc"))?;
    let tarball = target_dir().join(format!(
        "dist/{NAME}-{VERSION}-linux-{}.tar.xz",
        env::consts::ARCH
    ));
    let mut command = Command::new("tar");
    command
        .args(["--create", "--xz", "--sort=name", "--format=gnu"])
        .args(["--owner=0", "--group=0", "--numeric-owner"]);
    if let Some(time) = time() {
        command.arg(format!("--mtime=@{time}"));
    }
    show(
        command
            .arg("--file")
            .arg(&tarball)
            .arg("--directory")
            .arg(&folder)
            .arg("usr"),
    )?;
    Ok(tarball)
}

/// Seconds since 1970 that files are said to be of: the environment's, else the last
/// commit's; `None` outside a repository.
fn time() -> Option<String> {
    env::var("SOURCE_DATE_EPOCH").ok().or_else(|| {
        let output = Command::new("git")
            .args(["log", "-1", "--format=%ct"])
            .current_dir(workspace())
            .stderr(Stdio::null())
            .output()
            .ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        (!text.trim().is_empty()).then(|| text.trim().to_owned())
    })
}

/// What Debian calls this architecture.
fn debian_arch() -> Result<&'static str> {
    Ok(match env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => bail!("no package is made for {other}"),
    })
}
