<?php
// A page that asks nobody: what is between a visitor and its bytes is the edge, the gate and PHP alone.
echo "bench page\n";
