"""`python -m ingestion PATH…`."""

from ingestion.cli import main

if __name__ == "__main__":
    main()
