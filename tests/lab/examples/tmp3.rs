fn main() -> anyhow::Result<()> {
    let lab = lab::Topology::new()
        .host(
            "m1",
            &[lab::Role::Mon("a"), lab::Role::Mgr("x"), lab::Role::Osd(0)],
        )
        .host("m2", &[lab::Role::Mon("b"), lab::Role::Osd(1)])
        .host("m3", &[lab::Role::Mon("c"), lab::Role::Osd(2)])
        .start()?;
    std::process::Command::new("cp")
        .args(["-r"])
        .arg(lab.dir().join("log"))
        .arg("/tmp/lablog")
        .status()?;
    Ok(())
}
