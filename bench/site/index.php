<?php
// A small site: a little work and a query, like a page of any. /?spin=MS keeps a processor busy for so long.
mysqli_report(MYSQLI_REPORT_ERROR | MYSQLI_REPORT_STRICT);
$db = new mysqli('localhost', 'bench', 'bench password', 'bench');
$row = $db->query('SELECT COUNT(*) AS pages FROM information_schema.character_sets')->fetch_assoc();
$end = microtime(true) + ($_GET['spin'] ?? 0) / 1000;
$digest = '';
do {
    $digest = hash('sha256', $digest . $row['pages']);
} while (microtime(true) < $end);
echo "bench page $digest\n";
