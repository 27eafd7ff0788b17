//! What a site may rely on.

use std::os::unix::fs::MetadataExt;

use kopek_instance::Who;

use crate::support::Server;

#[test]
fn both_web_servers_run_php_from_the_volume_and_write_as_the_plain_user_33() {
    for image in ["php8.2-apache", "php8.2-nginx"] {
        let server = Server::new();
        let shop = server.start(&server.spec(image, "shop", 3));
        shop.write("index.php", "<?php file_put_contents('made.txt', 'x'); echo 'sum ', 40 + 2;");
        assert!(shop.get("/", "").ends_with("sum 42"), "{image}: {}", shop.get("/", ""));
        let made = std::fs::metadata(shop.spec.volume.join("made.txt")).unwrap();
        assert_eq!((made.uid(), made.gid()), (33, 33), "{image}");
        shop.write("style.css", "body {}");
        assert!(shop.get("/style.css", "").contains("text/css"), "{image}");
    }
}

#[test]
fn uploads_and_scratch_files_of_php_have_a_place() {
    let server = Server::new();
    for image in ["php8.2-apache", "php8.2-nginx"] {
        let shop = server.start(&server.spec(image, "shop", 3));
        shop.write(
            "index.php",
            "<?php session_start(); echo strlen(file_get_contents(tempnam('/tmp', 'x'))), session_status();",
        );
        assert!(shop.get("/", "").ends_with("02"), "{image}: {}", shop.get("/", ""));
    }
}

#[test]
fn htaccess_counts_and_the_visitor_is_who_the_gate_says() {
    let server = Server::new();
    for image in ["php8.2-apache", "php8.2-nginx"] {
        let shop = server.start(&server.spec(image, "shop", 3));
        shop.write(
            ".htaccess",
            "RewriteEngine On\nRewriteCond %{REQUEST_FILENAME} !-f\nRewriteRule . /index.php [L]\n",
        );
        shop.write("index.php", "<?php echo $_SERVER['REQUEST_URI'], ' ', $_SERVER['REMOTE_ADDR'], ' ', $_SERVER['HTTPS'] ?? 'off';");
        let answer = shop.get("/2026/a-post", "X-Forwarded-For: 203.0.113.9\r\nX-Forwarded-Proto: https\r\n");
        assert!(answer.ends_with("/2026/a-post 203.0.113.9 on"), "{image}: {answer}");
        assert!(shop.get("/x", "").ends_with("/x 169.254.74.1 off"), "{image}: {}", shop.get("/x", ""));
        assert!(shop.get("/.htaccess", "").starts_with("HTTP/1.1 403"), "{image}");
        let log = std::fs::read_to_string(&shop.spec.log).unwrap();
        assert!(log.contains("203.0.113.9 - - ["), "{image}: {log}");
        assert!(!log.contains("kopek-probe"), "{image}: {log}");
        shop.write("broken.php", "<?php nowhere();");
        assert!(shop.get("/broken.php", "").contains(" 500 "), "{image}");
        let log = std::fs::read_to_string(&shop.spec.log).unwrap();
        assert!(log.contains("undefined function nowhere()"), "{image}: {log}");
    }
}

#[test]
fn mysql_is_where_unmodified_sites_look_for_it() {
    let server = Server::new();
    let shop = server.start(&server.spec("php8.2-apache", "shop", 3));
    // Whoever listens there gets PHP's connection.
    let socket =
        std::os::unix::net::UnixListener::bind(shop.spec.sql_socket_dir.join("mysqld.sock")).unwrap();
    std::fs::set_permissions(
        shop.spec.sql_socket_dir.join("mysqld.sock"),
        std::os::unix::fs::PermissionsExt::from_mode(0o777),
    )
    .unwrap();
    let accepted = std::thread::spawn(move || socket.accept().map(drop));
    let said =
        shop.php("mysqli_report(0); mysqli_connect('localhost', 'u', 'p'); echo mysqli_connect_error();");
    accepted.join().unwrap().unwrap();
    assert!(said.contains("reading") || said.contains("gone away"), "{said}");
}

#[test]
fn a_command_runs_inside_as_www_data_or_as_the_containers_root_and_gives_its_exit_code() {
    let server = Server::new();
    let shop = server.start(&server.spec("php8.2-apache", "shop", 3));
    let output = shop.exec(Who::WwwData, &["sh", "-c", "id -un; pwd; echo err >&2; touch by-exec; exit 7"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "www-data\n/var/www/html\n");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "err\n");
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(std::fs::metadata(shop.spec.volume.join("by-exec")).unwrap().uid(), 33);
    assert_eq!(shop.exec(Who::Root, &["id", "-u"]).stdout, b"0\n");
    assert_eq!(shop.exec(Who::WwwData, &["sh", "-c", "kill -9 $$"]).status.code(), Some(137));
    let nothing = shop.exec(Who::WwwData, &["no-such-command"]);
    assert_eq!(nothing.status.code(), Some(127));
    assert!(String::from_utf8_lossy(&nothing.stderr).contains("no-such-command"));
}
