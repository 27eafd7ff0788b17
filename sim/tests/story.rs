//! The demo story, scripted: three servers, one site; load rises, a server dies, everything heals, load falls.
//! What the platform decided and when is in `story.txt`; `KOPEK_ACCEPT=1` writes it anew.

use kopek_sim::rack;

#[test]
fn the_demo_story_goes_as_written_down() {
    let mut cell = rack().server("s1", 4).server("s2", 4).server("s3", 4).site_between("blog", 1, 3).start();
    cell.settle(30_000);
    cell.demand("blog", 5_500);
    cell.run_until("a second instance serves", 10_000, |cell| cell.serving_on("blog").len() >= 2);
    cell.run_until("a third instance serves", 15_000, |cell| cell.serving_on("blog").len() == 3);
    cell.run_ms(3_000);
    let victim = cell.writer("blog").expect("the site has a database").to_owned();
    cell.kill(&victim);
    cell.run_until("the dead server is out of the route", 4_000, |cell| {
        !cell.serving_on("blog").contains(&victim.as_str())
    });
    cell.run_ms(5_000);
    cell.boot(&victim);
    cell.settle(30_000);
    cell.demand("blog", 300);
    cell.run_until("the extra instances are gone", 40_000, |cell| cell.serving_on("blog").len() == 1);
    cell.settle(10_000);

    let told = cell.log.join("\n") + "\n";
    // Tests run in their package's folder. Its name must not be compiled in: clones share their build products.
    let path = "tests/story.txt";
    if std::env::var_os("KOPEK_ACCEPT").is_some() {
        std::fs::write(path, &told).unwrap();
    }
    let written = std::fs::read_to_string(path).unwrap();
    assert_eq!(told, written, "if this is how it should go now, run again with KOPEK_ACCEPT=1");
}
