/* python.exe: all of it is in python311.dll. First it says that it has begun, where the check wants to know. */
#include <stdio.h>
#include <wchar.h>

int Py_Main(int argc, wchar_t **argv);

int wmain(int argc, wchar_t **argv) {
  const wchar_t *began = _wgetenv(L"AIPC_CHECK_BEGAN");
  FILE *file = began ? _wfopen(began, L"w") : NULL;
  if (file)
    fclose(file);
  return Py_Main(argc, argv);
}
