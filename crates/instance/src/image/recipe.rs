//! What goes into an image: Debian packages, files put on top, commands run inside. The text of a recipe
//! decides whether an image has to be built again, so anything that changes an image belongs here.

use std::collections::BTreeMap;

use kopek_core::ImageName;

use super::{LAUNCH_FILE, LaunchFile};
use crate::network::SERVER_SIDE;

/// Debian's modules for what WordPress, MediaWiki, Roundcube and phpMyAdmin ask for.
const PHP_MODULES: [&str; 12] = [
    "php8.2-mysql", // mysqli, pdo_mysql
    "php8.2-gd",
    "php8.2-intl",
    "php8.2-mbstring",
    "php8.2-xml",
    "php8.2-curl",
    "php8.2-zip",
    "php8.2-opcache",
    "php8.2-bcmath",
    "php8.2-soap",
    "php-apcu",
    "php-imagick",
];

/// The names that `build_image` takes.
pub fn known_images() -> Vec<ImageName> {
    ["php8.2-apache", "php8.2-nginx"]
        .map(|name| ImageName::parse(name).expect("the names above follow the rule for image names"))
        .to_vec()
}

pub(super) struct Recipe {
    pub packages: Vec<&'static str>,
    /// Path without the leading slash, and content; what ends in `.sh` or lies in a `bin` is executable.
    pub files: BTreeMap<&'static str, String>,
    /// Shell commands, run with the image's root as `$1`, after the files are in place.
    pub commands: Vec<&'static str>,
}

impl Recipe {
    pub(super) fn named(name: &ImageName) -> Option<Recipe> {
        match name.as_str() {
            "php8.2-apache" => Some(apache()),
            "php8.2-nginx" => Some(nginx()),
            _ => None,
        }
    }

    /// All of it as one text, for a key.
    pub(super) fn text(&self) -> String {
        format!("{:?}\n{:?}\n{:?}", self.packages, self.files, self.commands)
    }
}

fn base(server: &[&'static str], launch: LaunchFile) -> Recipe {
    let launch = serde_json::to_string_pretty(&launch).expect("a LaunchFile has only texts");
    Recipe {
        packages: [server, &PHP_MODULES, &["php8.2-cli", "ca-certificates"]].concat(),
        files: BTreeMap::from([(LAUNCH_FILE, launch), ("etc/php/8.2/cli/conf.d/90-kopek.ini", php_ini())]),
        commands: vec![
            "rm -f \"$1\"/var/www/html/* \"$1\"/etc/apt/apt.conf.d/99mmdebstrap",
            "rm -rf \"$1\"/etc/apt/sources.list.d/* \"$1\"/var/cache/ldconfig/aux-cache \"$1\"/var/cache/debconf/*-old",
            // Logs of the build, with its times.
            "find \"$1\"/var/log -type f -delete",
        ],
    }
}

fn environment(extra: &[(&str, &str)]) -> BTreeMap<String, String> {
    [("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"), ("LANG", "C.UTF-8")]
        .iter()
        .chain(extra)
        .map(|(name, value)| (name.to_string(), value.to_string()))
        .collect()
}

/// Errors go to the instance's log, not to visitors. `memory_limit` bounds one request; the instance's limit
/// bounds all of them.
fn php_ini() -> String {
    "mysqli.default_socket = /run/mysqld/mysqld.sock\n\
     pdo_mysql.default_socket = /run/mysqld/mysqld.sock\n\
     upload_max_filesize = 64M\n\
     post_max_size = 72M\n\
     memory_limit = 256M\n\
     max_execution_time = 120\n\
     expose_php = Off\n\
     display_errors = Off\n\
     log_errors = On\n\
     opcache.enable = 1\n\
     opcache.memory_consumption = 96\n\
     opcache.max_accelerated_files = 16229\n"
        .to_owned()
}

fn apache() -> Recipe {
    let mut recipe = base(
        &["apache2", "libapache2-mod-php8.2"],
        LaunchFile {
            init: vec!["/usr/sbin/apache2".to_owned(), "-DFOREGROUND".to_owned()],
            environment: environment(&[
                ("APACHE_RUN_USER", "www-data"),
                ("APACHE_RUN_GROUP", "www-data"),
                ("APACHE_RUN_DIR", "/run"),
                ("APACHE_LOCK_DIR", "/run"),
                ("APACHE_PID_FILE", "/run/apache2.pid"),
                ("APACHE_LOG_DIR", "/var/log/apache2"),
            ]),
            // graceful-stop (httpd manual, "Stopping and Restarting").
            stop_signal: "SIGWINCH".to_owned(),
        },
    );
    recipe.files.insert("etc/php/8.2/apache2/conf.d/90-kopek.ini", php_ini());
    recipe.files.insert("etc/apache2/mods-available/mpm_prefork.conf", PREFORK.to_owned());
    recipe.files.insert("etc/apache2/sites-available/kopek.conf", apache_site());
    recipe.commands.extend([
        "chroot \"$1\" a2enmod -q rewrite headers expires deflate remoteip",
        "chroot \"$1\" a2dismod -q -f status",
        "chroot \"$1\" a2disconf -q other-vhosts-access-log serve-cgi-bin",
        "chroot \"$1\" a2dissite -q 000-default",
        "chroot \"$1\" a2ensite -q kopek",
        "chroot \"$1\" env APACHE_RUN_DIR=/tmp APACHE_LOCK_DIR=/tmp APACHE_PID_FILE=/tmp/p APACHE_LOG_DIR=/tmp \
         APACHE_RUN_USER=www-data APACHE_RUN_GROUP=www-data apache2 -t",
    ]);
    recipe
}

/// A child is some 30 MB once it has run a large site, and an instance 512 MB by default. Two children at
/// the start answer at once and beside; more come in tenths of a second.
const PREFORK: &str = "\
StartServers 2
MinSpareServers 1
MaxSpareServers 4
ServerLimit 24
MaxRequestWorkers 24
MaxConnectionsPerChild 4000
";

fn apache_site() -> String {
    // An idle connection holds a child, so it is closed soon; the edges open new ones as they need them.
    format!(
        "\
ServerName localhost
ServerTokens Prod
ServerSignature Off
TraceEnable Off
KeepAlive On
KeepAliveTimeout 2
MaxKeepAliveRequests 0
AcceptFilter http none

# Every connection comes from the gate, which knows the visitor.
RemoteIPHeader X-Forwarded-For
RemoteIPInternalProxy {SERVER_SIDE}
SetEnvIf X-Forwarded-Proto \"^https$\" HTTPS=on

ErrorLog /proc/self/fd/2
SetEnvIf Host \"^kopek-probe$\" probe
CustomLog /proc/self/fd/1 combined env=!probe

<VirtualHost *:80>
    DocumentRoot /var/www/html
    <Directory /var/www/html>
        Options FollowSymLinks
        AllowOverride All
        Require all granted
    </Directory>
    DirectoryIndex index.php index.html index.htm
</VirtualHost>
"
    )
}

fn nginx() -> Recipe {
    let mut recipe = base(
        &["nginx-light", "php8.2-fpm"],
        LaunchFile {
            init: vec!["/usr/local/sbin/kopek-init".to_owned()],
            environment: environment(&[]),
            stop_signal: "SIGQUIT".to_owned(),
        },
    );
    recipe.files.insert("etc/php/8.2/fpm/conf.d/90-kopek.ini", php_ini());
    recipe.files.insert("etc/php/8.2/fpm/php-fpm.conf", FPM.to_owned());
    recipe.files.insert("etc/nginx/nginx.conf", nginx_conf());
    recipe.files.insert("usr/local/sbin/kopek-init", NGINX_INIT.to_owned());
    recipe.commands.extend(["chroot \"$1\" php-fpm8.2 -t", "chroot \"$1\" nginx -t", "rm -rf \"$1\"/run/*"]);
    recipe
}

/// Both servers belong together: when one ends, so does the instance, and is started anew. nginx is told to
/// stop first, so that it can finish what still waits for PHP.
const NGINX_INIT: &str = r#"#!/bin/bash
stop() {
    trap - QUIT TERM
    kill -QUIT "$nginx" && wait "$nginx"
    kill -QUIT "$fpm" && wait "$fpm"
    exit 0
}
trap stop QUIT TERM
php-fpm8.2 --nodaemonize & fpm=$!
until [ -S /run/php-fpm.sock ]; do
    kill -0 "$fpm" || exit 1
    read -rt 0.005 <> <(:)
done
nginx -g 'daemon off;' & nginx=$!
wait -n "$fpm" "$nginx"
exit 1
"#;

const FPM: &str = "\
[global]
error_log = /proc/self/fd/2
log_limit = 8192
daemonize = no

[www]
user = www-data
group = www-data
listen = /run/php-fpm.sock
listen.owner = www-data
listen.group = www-data
pm = ondemand
pm.max_children = 16
pm.process_idle_timeout = 30s
pm.max_requests = 4000
catch_workers_output = yes
decorate_workers_output = no
clear_env = yes
";

fn nginx_conf() -> String {
    format!(
        r#"user www-data;
worker_processes 1;
pid /run/nginx.pid;
error_log stderr;
events {{ worker_connections 1024; }}
http {{
    include /etc/nginx/mime.types;
    default_type application/octet-stream;
    sendfile on;
    tcp_nopush on;
    server_tokens off;
    keepalive_timeout 60s;
    client_max_body_size 72m;
    gzip on;
    gzip_types text/css application/javascript application/json image/svg+xml;
    # Every connection comes from the gate, which knows the visitor.
    real_ip_header X-Forwarded-For;
    set_real_ip_from {SERVER_SIDE};
    map $http_x_forwarded_proto $https_of_visitor {{ https on; default ""; }}
    map $host $is_visitor {{ kopek-probe 0; default 1; }}
    access_log /proc/self/fd/1 combined if=$is_visitor;
    server {{
        listen 80 default_server;
        root /var/www/html;
        index index.php index.html index.htm;
        location / {{ try_files $uri $uri/ /index.php?$args; }}
        location ~ /\.(?!well-known/) {{ deny all; }}
        location ~ \.php$ {{
            try_files $uri =404;
            include fastcgi_params;
            fastcgi_param SCRIPT_FILENAME $document_root$fastcgi_script_name;
            fastcgi_param HTTPS $https_of_visitor if_not_empty;
            fastcgi_pass unix:/run/php-fpm.sock;
            fastcgi_read_timeout 130s;
        }}
    }}
}}
"#
    )
}
