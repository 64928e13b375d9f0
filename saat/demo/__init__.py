"""What `saat demo` needs: a small speech corpus, spoken on the spot, with exact phoneme labels."""
