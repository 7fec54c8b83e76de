from ingestion.recognition.recognizer import Found, Kind, Recognizer

__all__ = ["Found", "Kind", "Recognizer"]
